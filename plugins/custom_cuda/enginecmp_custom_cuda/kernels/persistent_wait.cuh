// Waiting, in bounds: for counters that other multiprocessors raise, and for slots of the ring.
#pragma once
#include "kernel.h"
#include "matvec.cuh"
#include "persistent_params.h"
#include "ptx.cuh"

namespace persistent {

constexpr int CONSUMERS = matvec::THREADS;  // threads that multiply
constexpr int THREADS = CONSUMERS + 32;     // and a warp that fetches weights
constexpr int TEAMS = 2;                // of the consumers; a chunk is read by one
constexpr int TEAM_WARPS = CONSUMERS / 32 / TEAMS;  // each has 4 of a chunk's 16 rows
static_assert(TEAM_WARPS * dot::ROWS == packing::TILE_ROWS, "a team has the rows of a tile");
constexpr int ROW_WORDS = 5;

enum Kind { QKV, ATTENTION, OUTPUT, GATE_UP, DOWN, HEAD, NEXT };
enum Counter { RESIDUAL, QKV_DONE, ATTENTION_DONE, OUTPUT_DONE, HIDDEN, BEST, NO_COUNTER = 255 };
// Why a block gave up; engine/persistent/run.py has the words.
enum Reason { COUNTER_TOO_LOW = 1, SLOT_NOT_FULL = 2, SLOT_NOT_EMPTY = 3 };

// One row of the schedule, in shared memory.
struct Row {
    const int *words;
    __device__ int kind() const { return words[0] & 15; }
    __device__ bool waits() const { return words[0] >> 4 & 1; }
    __device__ int counter() const { return words[0] >> 8 & 255; }
    __device__ int signal() const { return words[0] >> 16 & 255; }
    __device__ int layer() const { return words[1]; }
    __device__ int first() const { return words[2]; }
    __device__ int count() const { return words[3]; }
    __device__ int target() const { return words[4]; }
};

// Ends the kernel: the host finds in `status` what was waited for.
__device__ inline void give_up(const PersistentParams &p, Reason reason, int token, int row, int what, int expected,
                               int seen) {
    int *const status = p.status + blockIdx.x * 8;
    status[1] = token, status[2] = row, status[3] = what, status[4] = expected, status[5] = seen;
    __threadfence_system();
    ptx::store_system(status, reason);
    __threadfence_system();
    ptx::trap();
}

// A barrier of the consumers only: the fetching warp never comes by. A macro, so that tests can remove each place.
#define CONSUMERS_MEET() ptx::barrier_sync(1, ::persistent::CONSUMERS)

// One thread waits until a counter has grown by `target` since the beginning of the token.
__device__ inline void await_counter(const PersistentParams &p, int token, int row, int counter, int target) {
    const unsigned expected = static_cast<unsigned>(token * p.per_token[counter] + target);
    const unsigned *const at = p.counters + counter * 32;
    int polls = 0;
    for (;;) {
        const unsigned seen = ptx::load_acquire(at);
        if (static_cast<int>(seen - expected) >= 0) return;
        if (++polls > p.patience) give_up(p, COUNTER_TOO_LOW, token, row, counter, expected, seen);
    }
}

}  // namespace persistent
