// Where threads wait: for their block, for some of its warps, for lanes of their warp, for memory to change.
#include "block.h"

namespace simt {

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
        bool agree = true, alike = true;
        for (unsigned others = mask; others; others &= others - 1) {
            agree &= warp.masks[__builtin_ctz(others)] == warp.masks[lane];
            alike &= warp.resolve[__builtin_ctz(others)] == warp.resolve[lane];
        }
        if (!agree) continue;
        if (!alike) trap(719, "lanes of one mask came to different warp operations");
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

}  // namespace simt
