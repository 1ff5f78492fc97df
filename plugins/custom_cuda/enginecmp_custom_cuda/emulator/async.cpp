// Asynchronous copies and the barriers that track them.
//
// A copy's target is poisoned when it is issued and filled when somebody waits for it: reading too early, or
// refilling what others still read, shows up as wrong numbers.
#include <cstring>

#include "block.h"

namespace simt {

namespace {

void fill(const Copy &copy) {
    memcpy(copy.to, copy.from, copy.valid_bytes);
    memset(static_cast<char *>(copy.to) + copy.valid_bytes, 0, copy.bytes - copy.valid_bytes);
}

// The state of an mbarrier in its 64 bits; the real one's is opaque.
struct State {
    unsigned expected, pending;
    int bytes;  // still to come in this phase
    unsigned phase;

    static State read(const uint64_t *at) {
        if (reinterpret_cast<uintptr_t>(at) % 8) trap(716, "mbarrier: expected an 8-byte aligned address");
        const uint64_t raw = *at;
        const State state = {unsigned(raw & 0xfff), unsigned(raw >> 12 & 0xfff),
                             int(int64_t(raw << 8) >> 32), unsigned(raw >> 56 & 1)};
        if (raw >> 57 != 0x35 || state.expected == 0 || state.pending > state.expected)
            trap(719, "mbarrier: used before it was initialised");
        return state;
    }
    void write(uint64_t *at) const {
        *at = uint64_t(0x35) << 57 | uint64_t(phase & 1) << 56 | (uint64_t(uint32_t(bytes)) << 24 & 0xffffffff000000) |
              uint64_t(pending) << 12 | expected;
    }
    void advance() {
        if (pending != 0 || bytes != 0) return;
        phase ^= 1;
        pending = expected;
    }
};

}  // namespace

// ---- cp.async

void async_copy(void *shared, const void *global, unsigned bytes, unsigned valid_bytes) {
    if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % bytes)
        trap(716, "cp.async: expected addresses aligned to the copy's size");
    Fiber &own = running_block->fiber();
    memset(shared, 0xff, bytes);
    own.copies.push_back({shared, global, bytes, valid_bytes, nullptr});
    own.uncommitted++;
}

void async_commit() {
    Fiber &own = running_block->fiber();
    own.groups.push_back(own.uncommitted);
    own.uncommitted = 0;
}

void async_wait(unsigned groups_left) {
    Fiber &own = running_block->fiber();
    if (own.groups.size() <= groups_left) return;
    const size_t groups = own.groups.size() - groups_left;
    size_t copies = 0;
    for (size_t i = 0; i < groups; i++) copies += own.groups[i];
    for (size_t i = 0; i < copies; i++) fill(own.copies[i]);
    own.groups.erase(own.groups.begin(), own.groups.begin() + long(groups));
    own.copies.erase(own.copies.begin(), own.copies.begin() + long(copies));
}

// ---- bulk copies and mbarriers

void barrier_init(uint64_t *barrier, unsigned count) {
    if (count == 0 || count > 0xfff) trap(719, "mbarrier: expected 1..4095 arrivals");
    State{count, count, 0, 0}.write(barrier);
    running_block->unfenced = true;
    progress();
}

void barrier_init_fence() { running_block->unfenced = false; }

void barrier_arrive(uint64_t *barrier, unsigned count, unsigned expect_bytes) {
    State state = State::read(barrier);
    if (count > state.pending) trap(719, "mbarrier: more arrivals than it was initialised for");
    state.bytes += int(expect_bytes);
    state.pending -= count;
    state.advance();
    state.write(barrier);
    progress();
    running_block->something_ran = true;
    may_preempt();
}

void bulk_copy(void *shared, const void *global, unsigned bytes, uint64_t *barrier) {
    if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global) | bytes) % 16)
        trap(716, "bulk copy: expected addresses and a size that are multiples of 16");
    State::read(barrier);
    if (running_block->unfenced) trap(719, "bulk copy: expected fence_mbarrier_init after mbarrier_init");
    memset(shared, 0xff, bytes);
    running_block->bulk.push_back({shared, global, bytes, bytes, barrier});
    running_block->something_ran = true;
}

// Somebody waits for this barrier: the oldest copy that it tracks arrives, and the thread asks again.
bool barrier_test(uint64_t *barrier, unsigned parity) {
    Block &block = *running_block;
    State state = State::read(barrier);
    if (state.phase != (parity & 1)) return true;
    for (size_t i = 0; i < block.bulk.size(); i++) {
        if (block.bulk[i].barrier != barrier) continue;
        const Copy copy = block.bulk[i];
        block.bulk.erase(block.bulk.begin() + long(i));
        fill(copy);
        state.bytes -= int(copy.bytes);
        state.advance();
        state.write(barrier);
        block.something_ran = true;
        progress();
        break;
    }
    if (state.phase != (parity & 1)) return true;
    spin();
    return false;
}

}  // namespace simt
