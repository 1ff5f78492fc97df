// What only tests ask for; tests/custom_cuda_controls.py calls these.
#include <cstring>

#include "driver.h"

using simt::driver;

extern "C" {

// Barriers of a module: how many; and one's place. `used` tells whether a thread has come by.
SIMT_EXPORT int simt_barrier_count(void *handle) {
    std::lock_guard<std::recursive_mutex> lock(driver().mutex);
    simt::Module *const module = static_cast<simt::Module *>(handle);
    return driver().context.modules.count(module) ? int(module->sites.size()) : -1;
}

SIMT_EXPORT void simt_barrier_place(void *handle, int index, const char **file, int *line, const char **kind,
                                    int *used) {
    std::lock_guard<std::recursive_mutex> lock(driver().mutex);
    const auto &sites = static_cast<simt::Module *>(handle)->sites[size_t(index)];
    *file = sites[0]->file;
    *line = sites[0]->line;
    *kind = sites[0]->kind;
    *used = 0;
    for (const simt::Site *site : sites) *used |= __atomic_load_n(&site->used, __ATOMIC_RELAXED);
}

// index -1: all stand again.
SIMT_EXPORT void simt_barrier_remove(void *handle, int index) {
    std::lock_guard<std::recursive_mutex> lock(driver().mutex);
    auto &places = static_cast<simt::Module *>(handle)->sites;
    for (size_t i = 0; i < places.size(); i++)
        for (simt::Site *site : places[i]) __atomic_store_n(&site->removed, int(i) == index, __ATOMIC_RELAXED);
}

SIMT_EXPORT void simt_set_order(int order, unsigned long long seed) {
    std::lock_guard<std::recursive_mutex> lock(driver().mutex);
    driver().settings.order = static_cast<simt::Order>(order);
    driver().settings.seed = seed;
}

SIMT_EXPORT void simt_set_multiprocessors(unsigned count) { driver().settings.multiprocessors = count; }
SIMT_EXPORT void simt_set_memory(size_t bytes) { driver().context.memory.limit = bytes; }
SIMT_EXPORT void simt_set_patience(double seconds) { driver().settings.patience_seconds = seconds; }
SIMT_EXPORT void simt_set_overlap(int on) { driver().settings.overlap = on != 0; }

// times -1: for ever; code 0: no fault any more; name null: forget all faults.
SIMT_EXPORT void simt_fail(const char *name, int code, int after, int times) {
    std::lock_guard<std::recursive_mutex> lock(driver().mutex);
    if (!name)
        driver().faults.clear();
    else if (code == 0)
        driver().faults.erase(name);
    else
        driver().faults[name] = {code, after, times};
}

// Why the context was lost; empty while it is not.
SIMT_EXPORT void simt_why_lost(char *text, int length) {
    simt::Context &context = driver().context;
    std::lock_guard<std::mutex> lock(context.event_mutex);
    strncpy(text, context.why_lost.c_str(), size_t(length) - 1);
    text[length - 1] = 0;
}

SIMT_EXPORT unsigned simt_abi() { return SIMT_ABI; }
}
