#include "block.h"

#include <sched.h>
#include <sys/mman.h>
#include <time.h>

#include <cstdio>
#include <cstring>
#include <map>

namespace simt {

__thread Thread *current __attribute__((tls_model("initial-exec"))) = nullptr;
__thread Block *running_block __attribute__((tls_model("initial-exec"))) = nullptr;

static double now_seconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

void Grid::fail(int code, const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    std::lock_guard<std::mutex> lock(message_mutex);
    if (failure.load() != 0) return;
    message = std::string("kernel ") + kernel->name + ": " + text;
    fprintf(stderr, "custom_cuda emulator: %s\n", message.c_str());
    failure.store(code);
}

static uint64_t next_random(uint64_t &state) {  // xorshift64*, Vigna 2016
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1du;
}

// Forward and reverse run one thread as far as it can go, then its neighbour: the widest gap between threads.
int Block::pick(const ThreadSet &from) {
    if (grid->order == Order::forward) {
        for (unsigned w = 0; w < words; w++)
            if (from.words[w]) return int(w * 64) + __builtin_ctzll(from.words[w]);
    } else if (grid->order == Order::reverse) {
        for (unsigned w = words; w-- > 0;)
            if (from.words[w]) return int(w * 64) + 63 - __builtin_clzll(from.words[w]);
    } else {
        const uint64_t r = next_random(random);
        const unsigned first = unsigned(r >> 40) % words, turn = unsigned(r >> 32) & 63;
        for (unsigned k = 0; k < words; k++) {
            const unsigned w = (first + k) % words;
            if (!from.words[w]) continue;
            const uint64_t turned = from.words[w] >> turn | from.words[w] << (-turn & 63);
            return int(w * 64 + ((unsigned(__builtin_ctzll(turned)) + turn) & 63));
        }
    }
    return -1;
}

void Block::abandon() {
    current = nullptr;
    Registers forgotten;
    context_switch(forgotten, host);
    __builtin_unreachable();
}

void Block::let_others() {
    if (!grid->turns.on()) return;
    const unsigned blocks = grid->blocks();
    const bool down = grid->order == Order::reverse;
    unsigned further = 0;
    if (grid->order == Order::shuffled && blocks > 1) further = unsigned(next_random(random) >> 33) % (blocks - 1);
    grid->turns.pass(down ? place + blocks - 1 : place + 1 + further, down);
    grid->turns.await(place, grid->failure);
}

void Block::give_way() {
    Fiber *const from = static_cast<Fiber *>(current);
    // With a seeded order a block may be held up between any two of its waits, while the others go on.
    if (grid->order == Order::shuffled && grid->turns.on() && next_random(random) >> 57 == 0) let_others();
    int next = pick(ready);
    while (next < 0) {
        if (!all_poll()) abandon();
        next = pick(ready);
    }
    if (grid->failure.load(std::memory_order_relaxed)) abandon();
    Fiber &to = fibers[unsigned(next)];
    if (&to == from) return;
    current = &to;
    context_switch(from->context, to.context);
}

// No thread is ready. Those that poll get another turn, unless nothing in the whole grid can change any more.
bool Block::all_poll() {
    bool any = false, any_gated = false;
    for (unsigned w = 0; w < words; w++) any |= polling.words[w] != 0, any_gated |= gated.words[w] != 0;
    if (exited == count) return false;
    if (any_gated && !counted_gate && (!any || idle_rounds > 4)) counted_gate = true, grid->at_gate++;
    if (any_gated && !any) {
        while (!grid->gate->load() && !grid->failure.load()) {
            const timespec nap = {0, 50000};
            nanosleep(&nap, nullptr);
        }
        if (grid->failure.load()) return false;
    }
    if (any_gated && grid->gate->load()) {
        release(gated);
        return true;
    }
    if (!any) {
        dead_end();
        return false;
    }
    uint64_t changes = grid->changes.load(std::memory_order_relaxed);
    if (changes == seen_changes && !something_ran && grid->turns.on()) {
        let_others();
        changes = grid->changes.load(std::memory_order_relaxed);
    }
    if (changes != seen_changes || something_ran) {
        seen_changes = changes;
        something_ran = false;
        idle_rounds = 0;
        if (counted_polling) counted_polling = false, grid->polling--;
    } else if (++idle_rounds >= 4) {
        if (!counted_polling) counted_polling = true, polling_since = now_seconds(), grid->polling++;
        if (idle_rounds < 64) {
            sched_yield();
        } else {
            const timespec nap = {0, 50000};
            nanosleep(&nap, nullptr);
        }
        // Other blocks that compute may yet change memory; so may the host, hence the patience.
        if (any_gated || grid->polling.load() < grid->live.load()) polling_since = now_seconds();
        if (now_seconds() - polling_since > grid->patience_seconds) {
            dead_end();
            return false;
        }
    }
    if (grid->failure.load()) return false;
    release(polling);
    return true;
}

void Block::release(ThreadSet &of) {
    for (unsigned w = 0; w < words; w++) {
        ready.words[w] |= of.words[w];
        of.words[w] = 0;
    }
}

std::string Block::who_waits() const {
    std::map<std::string, unsigned> waiting;
    for (const Fiber &thread : fibers) {
        if (number(thread) >= count) break;
        std::string where = thread.waits_in ? thread.waits_in : "";
        if (where.empty()) continue;
        const Site *const site = thread.waits_at;
        if (site) where += std::string(" ") + site->file + ":" + std::to_string(site->line);
        waiting[where]++;
    }
    std::string text;
    for (const auto &[where, threads] : waiting) text += ", " + std::to_string(threads) + " wait at " + where;
    return text + ", " + std::to_string(exited) + " have left";
}

void Block::dead_end() {
    grid->fail(719, "block (%u,%u,%u): no thread can go on%s", index.x, index.y, index.z, who_waits().c_str());
}

void may_preempt() {
    Block &block = *running_block;
    if (block.grid->order == Order::shuffled && next_random(block.random) >> 62 == 0) block.give_way();
}

static void fiber_main() {
    Block &block = *running_block;
    block.grid->kernel->run(block.grid->params);
    block.leave();
}

Block::~Block() {
    if (shared_mapping) munmap(shared_mapping, shared_mapping_bytes);
}

void Block::run(Grid &of, unsigned block_number) {
    grid = &of;
    place = block_number;
    if (of.turns.on()) of.turns.await(place, of.failure);
    if (of.failure.load()) return;
    index = {block_number % of.grid_size.x, block_number / of.grid_size.x % of.grid_size.y,
             block_number / of.grid_size.x / of.grid_size.y};
    count = of.block_size.x * of.block_size.y * of.block_size.z;
    words = (count + 63) / 64;
    exited = 0;
    counted_polling = counted_gate = something_ran = unfenced = false;
    idle_rounds = 0;
    seen_changes = 0;
    random = (of.seed * 0x9e3779b97f4a7c15u) ^ (uint64_t(block_number + 1) * 0xbf58476d1ce4e5b9u);
    if (random == 0) random = 1;
    ready = polling = gated = ThreadSet();
    for (NamedBarrier &barrier : barriers) barrier = NamedBarrier();
    bulk.clear();
    if (fibers.size() < count) fibers.resize(count);
    stacks.reserve(unsigned(fibers.size()));
    warps.assign((count + 31) / 32, Warp());
    prepare_shared();
    for (unsigned i = 0; i < count; i++) {
        Fiber &fiber = fibers[i];
        const unsigned row = i / of.block_size.x;
        fiber.index = {i % of.block_size.x, row % of.block_size.y, row / of.block_size.y};
        fiber.lane = i % 32;
        fiber.block_index = &index;
        fiber.block_size = &of.block_size;
        fiber.grid_size = &of.grid_size;
        fiber.block = this;
        fiber.waits_in = nullptr;
        fiber.copies.clear();
        fiber.groups.clear();
        fiber.uncommitted = 0;
        context_make(fiber.context, stacks.bottom(i), stacks.top(i), fiber_main);
        warps[i / 32].lanes |= 1u << i % 32;
        ready.add(i);
    }
    of.live++;
    running_block = this;
    if (sigsetjmp(recover, 0) == 0) {
        Fiber &first = fibers[unsigned(pick(ready))];
        current = &first;
        context_switch(host, first.context);
    }
    current = nullptr;
    running_block = nullptr;
    if (counted_polling) of.polling--;
    if (of.gate && !counted_gate) of.at_gate++;
    of.live--;
    of.changes.fetch_add(1);
    if (of.turns.on()) {
        of.turns.leave(place);
        of.turns.pass(place + 1, false);
    }
    for (unsigned i = 0; i < count; i++) {
        if (stacks.intact(i)) continue;
        of.fail(719, "block (%u,%u,%u), thread %u: its stack of %zu bytes is too small", index.x, index.y, index.z, i,
                fiber_stack_bytes);
        *reinterpret_cast<uint64_t *>(stacks.bottom(i)) = fiber_canary;
    }
    check_shared();
}

}  // namespace simt
