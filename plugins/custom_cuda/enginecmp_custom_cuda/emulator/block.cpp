#include "block.h"

#include <link.h>
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

void Block::give_way() {
    Fiber *const from = static_cast<Fiber *>(current);
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
    const uint64_t changes = grid->changes.load(std::memory_order_relaxed);
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
        if (thread.waits_at) where += std::string(" ") + thread.waits_at->file + ":" + std::to_string(thread.waits_at->line);
        waiting[where]++;
    }
    std::string text;
    for (const auto &[where, threads] : waiting) text += ", " + std::to_string(threads) + " wait at " + where;
    return text + ", " + std::to_string(exited) + " have left";
}

void Block::dead_end() {
    grid->fail(719, "block (%u,%u,%u): no thread can go on%s", index.x, index.y, index.z, who_waits().c_str());
}

// ---- barriers

void Block::settle_barrier(unsigned id) {
    NamedBarrier &barrier = barriers[id];
    const unsigned expected = id == 0 ? count - exited : barrier.expected;
    if (barrier.arrived == 0 || barrier.arrived < expected) return;
    barrier.arrived = 0;
    release(barrier.waiting);
}

void block_barrier(Site *site) { 
    if (standing(site)) named_barrier(site, 0, 0, true);
}

void named_barrier(Site *site, unsigned id, unsigned threads, bool wait) {
    if (id != 0 && !standing(site)) return;
    Block &block = *running_block;
    Fiber &own = block.fiber();
    if (id >= most_barriers || (id != 0 && (threads == 0 || threads % 32 || threads > block.count)))
        trap(719, "named barrier: expected id 1..15 and a multiple of 32 threads of the block");
    NamedBarrier &barrier = block.barriers[id];
    if (barrier.arrived > 0 && id != 0 && barrier.expected != threads)
        trap(719, "named barrier: threads disagree about how many take part");
    barrier.expected = threads;
    barrier.arrived++;
    if (wait) {
        block.ready.remove(block.number(own));
        barrier.waiting.add(block.number(own));
        own.waits_at = site;
        own.waits_in = site->kind;
    }
    block.something_ran = true;
    block.settle_barrier(id);
    if (wait) {
        block.give_way();
        own.waits_in = nullptr;
    }
}

// ---- warps

void Block::settle(Warp &warp) {
    for (unsigned rest = warp.waiting; rest; rest &= rest - 1) {
        const unsigned lane = unsigned(__builtin_ctz(rest));
        const unsigned mask = warp.masks[lane] & warp.lanes & ~warp.exited;
        if ((warp.waiting & mask) != mask) continue;
        bool agree = true;
        for (unsigned others = mask; others; others &= others - 1)
            agree &= warp.masks[__builtin_ctz(others)] == warp.masks[lane];
        if (!agree) continue;
        void *arguments[32] = {};
        for (unsigned others = mask; others; others &= others - 1)
            arguments[__builtin_ctz(others)] = warp.arguments[__builtin_ctz(others)];
        if (warp.resolve[lane]) warp.resolve[lane](arguments, mask);
        warp.waiting &= ~mask;
        rest &= ~mask | 1u << lane;
        const unsigned first = unsigned(&warp - warps.data()) * 32;
        for (unsigned others = mask; others; others &= others - 1) ready.add(first + unsigned(__builtin_ctz(others)));
    }
}

static void wait_in_warp(unsigned mask, void *argument, Resolve resolve, const Site *site, const char *what) {
    Block &block = *running_block;
    Fiber &own = block.fiber();
    const unsigned number = block.number(own);
    Warp &warp = block.warps[number / 32];
    if (!(mask >> own.lane & 1)) trap(719, "a warp operation whose mask does not name the thread itself");
    warp.arguments[own.lane] = argument;
    warp.masks[own.lane] = mask;
    warp.resolve[own.lane] = resolve;
    warp.waiting |= 1u << own.lane;
    own.waits_at = site;
    own.waits_in = what;
    block.ready.remove(number);
    block.something_ran = true;
    const unsigned live = mask & warp.lanes & ~warp.exited;
    if ((warp.waiting & live) == live) block.settle(warp);
    block.give_way();
    own.waits_in = nullptr;
}

void warp_barrier(Site *site, unsigned mask) {
    if (standing(site)) wait_in_warp(mask, nullptr, nullptr, site, site->kind);
}

void collective(unsigned mask, void *argument, Resolve resolve, const char *what) {
    wait_in_warp(mask, argument, resolve, nullptr, what);
}

void Block::leave() {
    Fiber &own = fiber();
    const unsigned index_of = number(own);
    Warp &warp = warps[index_of / 32];
    ready.remove(index_of);
    exited++;
    something_ran = true;
    warp.exited |= 1u << own.lane;
    if (warp.waiting) settle(warp);
    settle_barrier(0);
    give_way();
}

// ---- polling

void spin() {
    Block &block = *running_block;
    const unsigned number = block.number(block.fiber());
    block.ready.remove(number);
    block.polling.add(number);
    block.fiber().waits_at = nullptr;
    block.fiber().waits_in = "a polled address";
    block.give_way();
    block.fiber().waits_in = nullptr;
}

void progress() { running_block->grid->changes.fetch_add(1, std::memory_order_relaxed); }

void may_preempt() {
    Block &block = *running_block;
    if (block.grid->order == Order::shuffled && next_random(block.random) >> 62 == 0) block.give_way();
}

void trap(int code, const char *message) {
    Block &block = *running_block;
    const uint3 thread = current->index;
    block.grid->fail(code, "block (%u,%u,%u), thread %u: %s", block.index.x, block.index.y, block.index.z, thread.x,
                     message);
    block.abandon();
    __builtin_unreachable();
}

void dependency_wait() {
    Block &block = *running_block;
    if (!block.grid->gate || block.grid->gate->load()) return;
    const unsigned number = block.number(block.fiber());
    block.ready.remove(number);
    block.gated.add(number);
    block.fiber().waits_at = nullptr;
    block.fiber().waits_in = "grid_dependency_wait";
    block.give_way();
    block.fiber().waits_in = nullptr;
}

// ---- shared memory

void *dynamic_shared() { return running_block->shared; }

namespace {
struct TlsSearch {
    const void *inside;
    size_t bytes;
    char *found;
};

int find_tls(dl_phdr_info *info, size_t, void *argument) {
    TlsSearch &search = *static_cast<TlsSearch *>(argument);
    if (!info->dlpi_tls_data) return 0;
    char *const data = static_cast<char *>(info->dlpi_tls_data);
    if (search.inside < data || search.inside >= data + search.bytes) return 0;
    search.found = data;
    return 1;
}
}  // namespace

// Shared memory is undefined when a block begins: all ones is NaN and -1.
void Block::prepare_shared() {
    const size_t bytes = (grid->shared_bytes + 127) / 128 * 128;
    const size_t wanted = (bytes + page - 1) / page * page + 2 * page;  // a page that faults after the end
    if (shared_mapping_bytes < wanted) {
        if (shared_mapping) munmap(shared_mapping, shared_mapping_bytes);
        void *mapped = mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED) throw std::bad_alloc();
        shared_mapping = static_cast<char *>(mapped);
        shared_mapping_bytes = wanted;
        mprotect(shared_mapping + wanted - page, page, PROT_NONE);
    }
    shared = shared_mapping + shared_mapping_bytes - page - bytes;
    memset(shared, 0xff, grid->shared_bytes);
    memset(shared + grid->shared_bytes, red_zone, bytes - grid->shared_bytes);
    memset(shared - 256, red_zone, 256);
    if (grid->module_shared_bytes == 0) return;
    // Of this OS thread; a block may run on another one next time.
    static __thread uint64_t module_shared_of = 0;
    static __thread char *module_shared = nullptr;
    if (module_shared_of != grid->module_number) {
        TlsSearch search = {grid->module->shared(), grid->module_shared_bytes, nullptr};
        dl_iterate_phdr(find_tls, &search);
        module_shared = search.found;
        module_shared_of = grid->module_number;
    }
    if (module_shared) memset(module_shared, 0xff, grid->module_shared_bytes);
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
    index = {block_number % of.grid_size.x, block_number / of.grid_size.x % of.grid_size.y,
             block_number / of.grid_size.x / of.grid_size.y};
    count = of.block_size.x * of.block_size.y * of.block_size.z;
    words = (count + 63) / 64;
    exited = 0;
    counted_polling = counted_gate = something_ran = false;
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
        fiber.index = {i % of.block_size.x, i / of.block_size.x % of.block_size.y, i / of.block_size.x / of.block_size.y};
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
    if (sigsetjmp(recover, 1) == 0) {
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
    for (unsigned i = 0; i < count; i++) {
        if (stacks.intact(i)) continue;
        of.fail(719, "block (%u,%u,%u), thread %u: its stack of %zu bytes is too small", index.x, index.y, index.z, i,
                fiber_stack_bytes);
        *reinterpret_cast<uint64_t *>(stacks.bottom(i)) = fiber_canary;
    }
    for (const char *at = shared - 256; at < shared_mapping + shared_mapping_bytes - page; at++) {
        if (at == shared) at += of.shared_bytes;
        if (at >= shared_mapping + shared_mapping_bytes - page) break;
        if (*reinterpret_cast<const unsigned char *>(at) == red_zone) continue;
        of.fail(700, "block (%u,%u,%u): wrote outside its %u bytes of dynamic shared memory, at offset %td", index.x,
                index.y, index.z, of.shared_bytes, at - shared);
        break;
    }
}

}  // namespace simt
