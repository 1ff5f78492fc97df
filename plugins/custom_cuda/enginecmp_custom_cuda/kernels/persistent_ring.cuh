// The rings of weights: one warp fetches this block's chunks in the order of the schedule, far ahead of those that
// multiply them, because weights depend on nothing: across steps, layers and tokens.
//
// Each team of consumers has a ring of its own, and chunks are dealt to the teams in turn. Chunk n of a team is in its
// slot n % slots, in pass n / slots. A slot is "full" when its chunk has arrived, and "empty" when the team's warps have
// read it. (In one ring for both, a team could come by a slot a whole pass ahead of the other team's chunk; a barrier
// that knows a pass by its parity only would take the pass before the last for the last.) Two ways to know: RING_BULK
// has a bulk copy and two mbarriers a slot (sm_90); RING_ASYNC has copies of 16 bytes a lane, and two counters a slot
// that only grow.
#pragma once
#include "kernel.h"
#include "packing.cuh"
#include "persistent_params.h"
#include "persistent_wait.cuh"
#include "ptx.cuh"

#define RING_BULK 1
#define RING_ASYNC 2

#if !defined(RING) || (RING != RING_BULK && RING != RING_ASYNC)
#error "define RING: RING_BULK from sm_90 on, or RING_ASYNC from sm_80 on"
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900 && RING == RING_BULK
#error "RING_BULK needs sm_90: define RING_ASYNC"
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "the ring needs copies to shared memory: sm_80"
#endif

namespace persistent {

// A place in a team's ring; everybody who goes round has one.
struct Place {
    unsigned char *memory;
    int slot_bytes, slots;
    int slot = 0;
    unsigned pass = 0;

    __device__ Place(const PersistentParams &p, unsigned char *shared, int team)
        : memory(shared + p.ring_at + team * (p.slots / TEAMS) * p.slot_bytes), slot_bytes(p.slot_bytes),
          slots(p.slots / TEAMS) {}
    __device__ unsigned char *chunk() const { return memory + slot * slot_bytes; }
    __device__ void advance() {
        if (++slot == slots) slot = 0, ++pass;
    }
};

#if RING == RING_BULK

struct Ring : Place {
    ptx::Barrier *barriers;

    __device__ Ring(const PersistentParams &p, unsigned char *shared, int team)
        : Place(p, shared, team), barriers(reinterpret_cast<ptx::Barrier *>(shared + p.barriers_at) + 2 * team * slots) {}
    __device__ ptx::Barrier *full() const { return barriers + 2 * slot; }
    __device__ ptx::Barrier *empty() const { return barriers + 2 * slot + 1; }

    // One thread does it, before all others.
    __device__ void begin() const {
        for (int i = 0; i < slots; ++i) {
            ptx::mbarrier_init(barriers + 2 * i, 1);
            ptx::mbarrier_init(barriers + 2 * i + 1, TEAM_WARPS);
        }
        ptx::fence_mbarrier_init();
        ptx::fence_async();
    }
    __device__ bool is_full() const { return ptx::mbarrier_try_wait(full(), pass & 1); }
    // A fresh barrier counts as one whose phase before the first is over: the first pass finds all slots empty.
    __device__ bool is_empty() const { return ptx::mbarrier_try_wait(empty(), (pass & 1) ^ 1); }
    __device__ void give_back() const { ptx::mbarrier_arrive(empty()); }
};

// What the fetching warp does with a chunk; one lane does it.
struct Fetcher {
    static constexpr int LANES = 1;
    __device__ static bool agreed(bool x) { return x; }
    __device__ void fetch(Ring &to, int, const unsigned char *from, int bytes) {
        ptx::mbarrier_arrive_expect(to.full(), bytes);
        ptx::bulk_copy_stream(to.chunk(), from, bytes, to.full());
    }
    __device__ void hand_over(Ring &, Ring &, int, bool) {}
};

#else

struct Ring : Place {
    volatile unsigned *counts;  // of a slot: chunks that have arrived, warps that have read one
    int published = 0;          // the slot of the oldest chunk that the consumers have not been told of
    unsigned published_pass = 0;

    __device__ Ring(const PersistentParams &p, unsigned char *shared, int team)
        : Place(p, shared, team), counts(reinterpret_cast<volatile unsigned *>(shared + p.barriers_at) + 2 * team * slots) {}

    __device__ void begin() const {
        for (int i = 0; i < 2 * slots; ++i) counts[i] = 0;
    }
    __device__ bool is_full() const { return reached(counts[2 * slot], pass + 1); }
    __device__ bool is_empty() const { return reached(counts[2 * slot + 1], pass * TEAM_WARPS); }
    __device__ void give_back() const {
        __threadfence_block();
        atomicAdd(const_cast<unsigned *>(counts) + 2 * slot + 1, 1u);
    }
    __device__ void publish() {
        if (threadIdx.x % 32 == 0) counts[2 * published] = published_pass + 1;
        if (++published == slots) published = 0, ++published_pass;
    }

  private:
    // What was read or written before the count grew is seen by whoever found that it has grown.
    __device__ static bool reached(unsigned seen, unsigned wanted) {
        if (static_cast<int>(seen - wanted) < 0) {
            ptx::nanosleep(20);
            return false;
        }
        __threadfence_block();
        return true;
    }
};

// What the fetching warp does with a chunk; all its lanes do it.
struct Fetcher {
    static constexpr int LANES = 32;
    // What the first lane has found. Lanes that look at different times would see different things.
    __device__ static bool agreed(bool x) {
        x = __shfl_sync(warp::ALL, static_cast<int>(x), 0) != 0;
        __syncwarp();  // orders memory only: what the first lane has seen, all see
        return x;
    }
    static constexpr int AHEAD = 3;  // chunks on their way beside the newest
    unsigned teams = 0;              // of the chunks under way, the newest in the lowest bit
    int under_way = 0;

    __device__ void fetch(Ring &to, int team, const unsigned char *from, int bytes) {
        for (int i = threadIdx.x % 32 * 16; i < bytes; i += 32 * 16) ptx::cp_async_16(to.chunk() + i, from + i);
        ptx::cp_async_commit();
        teams = teams << 1 | team;
        ++under_way;
    }
    // Tell the consumers of all chunks but the newest few, or of all. `team` has the ring `one`.
    __device__ void hand_over(Ring &one, Ring &other, int team, bool all) {
        if (all)
            ptx::cp_async_wait<0>();
        else
            ptx::cp_async_wait<AHEAD>();
        __threadfence_block();
        __syncwarp();
        for (; under_way > (all ? 0 : AHEAD); --under_way) {
            if ((teams >> (under_way - 1) & 1) == team)
                one.publish();
            else
                other.publish();
        }
    }
};

#endif

// For the consumers: the chunk in the current slot is there.
__device__ inline void await_full(const Ring &ring, const PersistentParams &p, int token, int row) {
    int polls = 0;
    while (!ring.is_full())
        if (++polls > p.patience) give_up(p, SLOT_NOT_FULL, token, row, ring.slot, ring.pass, 0);
}

// For the consumers: this warp has read the current slot.
__device__ inline void release(const Ring &ring) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ring.give_back();
}

__device__ inline int columns_of(const PersistentParams &p, int kind) {
    return kind == OUTPUT ? p.heads * HEAD_DIM : kind == DOWN ? p.inner : p.hidden;
}

// The packed matrix of a row; null for a step without one.
__device__ inline const void *matrix_of(const PersistentParams &p, const PersistentLayer *layers, const Row &row) {
    switch (row.kind()) {
        case QKV: return layers[row.layer()].matrix[0];
        case OUTPUT: return layers[row.layer()].matrix[1];
        case GATE_UP: return layers[row.layer()].matrix[2];
        case DOWN: return layers[row.layer()].matrix[3];
        case HEAD: return p.head;
        default: return nullptr;
    }
}

// Which team takes a matrix's chunk; `number` counts its chunks over all tiles.
__device__ inline int team_of(int number) { return number % TEAMS; }

// The fetching warp.
struct Producer {
    const PersistentParams &p;
    Fetcher fetcher;
    Ring ring, other;  // of the team whose turn it is, and of the other
    int team = 0;      // whose turn it is

    __device__ Producer(const PersistentParams &p_, unsigned char *shared)
        : p(p_), ring(p_, shared, 0), other(p_, shared, 1) {}

    __device__ __forceinline__ void run(const int *words, int rows, const PersistentLayer *layers) {
        if (threadIdx.x % 32 >= Fetcher::LANES) return;
        for (int token = 0; token < p.tokens; ++token) {
            for (int r = 0; r < rows; ++r) {
                const Row row = {words + r * ROW_WORDS};
                const void *const matrix = matrix_of(p, layers, row);
                if (matrix) fetch(token, r, row, static_cast<const unsigned char *>(matrix));
            }
        }
        fetcher.hand_over(ring, other, team, true);
        arrive(ring);
        arrive(other);
    }

    __device__ __forceinline__ void turn() {
        static_assert(TEAMS == 2, "the other team is one");
        const Ring before = ring;
        ring = other;
        other = before;
        team ^= 1;
    }

    __device__ __forceinline__ void fetch(int token, int r, const Row &row, const unsigned char *matrix) {
        const int columns = columns_of(p, row.kind());
        const int chunks = (columns + packing::CHUNK_COLUMNS - 1) / packing::CHUNK_COLUMNS;
        const unsigned char *at = matrix + row.first() * packing::tile_bytes(columns);
        if (team_of(row.first() * chunks) != team) turn();
        for (int tile = 0; tile < row.count(); ++tile) {
            for (int column = 0; column < columns; column += packing::CHUNK_COLUMNS) {
                const int bytes = packing::tile_bytes(min(packing::CHUNK_COLUMNS, columns - column));
                REMOVABLE("empty slot", await_empty(token, r));
                fetcher.fetch(ring, team, at, bytes);
                fetcher.hand_over(ring, other, team, false);
                ring.advance();
                turn();
                at += bytes;
            }
        }
    }

    __device__ __forceinline__ void await_empty(int token, int r) {
        const bool first = threadIdx.x % 32 == 0;
        if (Fetcher::agreed(first && ring.is_empty())) return;
        fetcher.hand_over(ring, other, team, true);  // what frees the slot may wait for these
        for (long long polls = 0; first && !ring.is_empty();) {
            // Consumers that never come have waited for something themselves: let them say what.
            if (++polls > 64LL * p.patience) give_up(p, SLOT_NOT_EMPTY, token, r, ring.slot, ring.pass, 0);
        }
        Fetcher::agreed(true);  // nobody goes on before the first lane has seen it
    }

    // Copies that are on their way write into this block's memory: it must not end before they have arrived. From the
    // slot that would have been next, the slots hold the chunks in their order; in the first pass some hold none.
    __device__ __forceinline__ void arrive(Ring &of) const {
        for (int i = 0; i < of.slots; ++i) {
            if (of.pass > 0) {
                Ring last = of;
                last.pass -= 1;
                await_full(last, p, -1, -1);
            }
            of.advance();
        }
    }
};

}  // namespace persistent
