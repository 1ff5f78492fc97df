// The device and its one context; what every call checks first.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver.h"

namespace simt {

thread_local bool context_is_current = false;

Driver &driver() {
    // Never destroyed: threads may still run when the process ends.
    static Driver *const only = new Driver();
    return *only;
}

bool verbose() { return getenv("CMP_EMULATOR_VERBOSE") != nullptr; }

static std::string describe(const void *address) { return driver().context.memory.describe(address); }

void Context::open() {
    if (alive) return;
    executor.reset(new Executor());
    describe_address = describe;
    lost = 0;
    why_lost.clear();
    alive = true;
}

void Context::close() {
    if (!alive) return;
    for (Stream *stream : streams) delete stream;
    streams.clear();
    executor.reset();
    for (Graph *graph : graphs) delete graph;
    for (Graph *graph : executables) delete graph;
    graphs.clear();
    executables.clear();
    for (Event *event : events) delete event;
    events.clear();
    for (Module *module : modules) delete module;
    modules.clear();
    memory.clear();
    lost = 0;
    alive = false;
}

void Context::lose(CUresult code, const std::string &why) {
    CUresult fine = 0;
    std::lock_guard<std::mutex> lock(event_mutex);
    if (lost.compare_exchange_strong(fine, code)) why_lost = why;
}

static bool is_sticky(CUresult code) { return code == 700 || code == 702 || (code >= 714 && code <= 719); }

CUresult enter(const char *name, Needs needs) {
    Driver &all = driver();
    const auto injected = all.faults.find(name);
    if (injected != all.faults.end()) {
        Fault &fault = injected->second;
        if (fault.after > 0) {
            fault.after--;
        } else if (fault.times != 0) {
            if (fault.times > 0) fault.times--;
            const CUresult code = fault.code;
            if (is_sticky(code)) all.context.lose(code, std::string("injected into ") + name);
            return code;
        }
    }
    if (needs >= initialised && !all.initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (needs >= device_context) {
        if (!all.context.alive || !context_is_current) return CUDA_ERROR_INVALID_CONTEXT;
        if (const CUresult lost = all.context.lost.load()) return lost;
    }
    return CUDA_SUCCESS;
}

}  // namespace simt

using simt::driver;

namespace {

// Numbers of CUdevice_attribute. Where an emulation has no answer of its own, a device of compute capability 9.0 is
// described: bulk copies, mbarriers and programmatic launches are there.
int attribute(int number) {
    switch (number) {
        case 1: return 1024;                                           // threads of a block
        case 2: case 3: return 1024;
        case 4: return 64;
        case 5: return 2147483647;                                     // grid
        case 6: case 7: return 65535;
        case 8: return 48 * 1024;                                      // shared memory of a block
        case 9: return 64 * 1024;
        case 10: return 32;                                            // warp
        case 12: case 82: return 65536;                                // registers
        case 13: case 36: return 1000000;                              // clocks, kHz: made up
        case 16: return int(driver().settings.multiprocessors);
        case 18: case 19: case 31: case 40: case 41: return 1;
        case 37: return 64;
        case 38: return 4 << 20;                                       // L2
        case 39: return 2048;                                          // threads of a multiprocessor
        case 75: return 9;                                             // compute capability
        case 76: return 0;
        case 81: return int(simt::multiprocessor_shared);
        case 86: case 95: return 1;                                    // atomics of the host, cooperative launches
        case 97: return int(simt::optin_shared);
        case 106: return 32;                                           // blocks of a multiprocessor
        case 111: return 1024;
        default: return 0;
    }
}

}  // namespace

API cuInit(unsigned) {
    ENTER(nothing);
    driver().initialised = true;
    return CUDA_SUCCESS;
}

API cuDriverGetVersion(int *version) {
    ENTER(nothing);
    if (!version) return CUDA_ERROR_INVALID_VALUE;
    *version = 13020;
    return CUDA_SUCCESS;
}

API cuDeviceGetCount(int *count) {
    ENTER(initialised);
    *count = 1;
    return CUDA_SUCCESS;
}

API cuDeviceGet(CUdevice *device, int ordinal) {
    ENTER(initialised);
    if (ordinal != 0) return CUDA_ERROR_INVALID_DEVICE;
    *device = 0;
    return CUDA_SUCCESS;
}

API cuDeviceGetName(char *name, int length, CUdevice device) {
    ENTER(initialised);
    if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
    snprintf(name, size_t(length), "emulated CUDA device");
    return CUDA_SUCCESS;
}

API cuDeviceGetUuid_v2(unsigned char *uuid, CUdevice device) {
    ENTER(initialised);
    if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
    memcpy(uuid, "emulated-device0", 16);
    return CUDA_SUCCESS;
}

API cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    ENTER(initialised);
    if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
    *bytes = driver().context.memory.limit;
    return CUDA_SUCCESS;
}

API cuDeviceGetAttribute(int *value, int number, CUdevice device) {
    ENTER(initialised);
    if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
    *value = attribute(number);
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRetain(void **context, CUdevice device) {
    ENTER(initialised);
    if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
    driver().context.open();
    driver().context.users++;
    *context = &driver().context;
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    ENTER(initialised);
    if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
    simt::Context &context = driver().context;
    if (context.users == 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (--context.users == 0) context.close();
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxReset_v2(CUdevice device) {
    ENTER(initialised);
    if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
    simt::Context &context = driver().context;
    context.close();
    if (context.users) context.open();
    return CUDA_SUCCESS;
}

API cuCtxSetCurrent(void *context) {
    ENTER(initialised);
    if (context && context != &driver().context) return CUDA_ERROR_INVALID_CONTEXT;
    simt::context_is_current = context != nullptr;
    return CUDA_SUCCESS;
}

API cuCtxGetCurrent(void **context) {
    ENTER(initialised);
    *context = simt::context_is_current ? &driver().context : nullptr;
    return CUDA_SUCCESS;
}

API cuCtxSynchronize() {
    ENTER(device_context);
    if (simt::unsafe_in_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    lock.unlock();
    return simt::synchronize(nullptr);
}
