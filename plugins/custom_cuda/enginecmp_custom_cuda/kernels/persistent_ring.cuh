// The ring of weights: one warp fetches this block's chunks in the order of the schedule, far ahead of those that
// multiply them, because weights depend on nothing: across steps, layers and tokens.
//
// Chunk n is in slot n % slots, in pass n / slots. A slot is "full" when its chunk has arrived, and "empty" when the
// warps of the team that took it have read it. Two ways to know: RING_BULK has a bulk copy and two mbarriers a slot
// (sm_90); RING_ASYNC has copies of 16 bytes a lane, and two counters a slot that only grow.
#pragma once
#include "kernel.h"
#include "packing.cuh"
#include "persistent_params.h"
#include "persistent_wait.cuh"
#include "ptx.cuh"

#define RING_BULK 0
#define RING_ASYNC 1

namespace persistent {

// A place in the ring; everybody who goes round has one.
struct Place {
    unsigned char *memory;
    int slot_bytes, slots;
    int slot = 0;
    unsigned pass = 0;

    __device__ Place(const PersistentParams &p, unsigned char *shared)
        : memory(shared + p.ring_at), slot_bytes(p.slot_bytes), slots(p.slots) {}
    __device__ unsigned char *chunk() const { return memory + slot * slot_bytes; }
    __device__ void advance() {
        if (++slot == slots) slot = 0, ++pass;
    }
};

#if RING == RING_BULK

struct Ring : Place {
    ptx::Barrier *barriers;

    __device__ Ring(const PersistentParams &p, unsigned char *shared)
        : Place(p, shared), barriers(reinterpret_cast<ptx::Barrier *>(shared + p.barriers_at)) {}
    __device__ ptx::Barrier *full() const { return barriers + 2 * slot; }
    __device__ ptx::Barrier *empty() const { return barriers + 2 * slot + 1; }

    __device__ void begin() const {
        for (int i = 0; i < slots; ++i) {
            ptx::mbarrier_init(barriers + 2 * i, 1);
            ptx::mbarrier_init(barriers + 2 * i + 1, TEAM_WARPS);
        }
        ptx::fence_mbarrier_init();
    }
    __device__ bool is_full() const { return ptx::mbarrier_try_wait(full(), pass & 1); }
    // A fresh barrier counts as one whose phase before the first is over: the first pass finds all slots empty.
    __device__ bool is_empty() const { return ptx::mbarrier_try_wait(empty(), (pass & 1) ^ 1); }
    __device__ void give_back() const { ptx::mbarrier_arrive(empty()); }

    // The fetching warp's side; one lane does it.
    static constexpr int FETCHING_LANES = 1;
    __device__ void fetch(const unsigned char *from, int bytes) const {
        ptx::mbarrier_arrive_expect(full(), bytes);
        ptx::bulk_copy_stream(chunk(), from, bytes, full());
    }
    __device__ void hand_over() const {}
    __device__ void hand_over_all() const {}
};

#else

struct Ring : Place {
    static constexpr unsigned AHEAD = 3;  // chunks on their way beside the newest
    volatile unsigned *counts;
    unsigned fetched = 0, handed_over = 0;  // chunks; a slot's "full" is the pass that has come, plus 1
    Place oldest;                           // not yet handed over

    __device__ Ring(const PersistentParams &p, unsigned char *shared)
        : Place(p, shared), counts(reinterpret_cast<volatile unsigned *>(shared + p.barriers_at)), oldest(p, shared) {}

    __device__ void begin() const {
        for (int i = 0; i < 2 * slots; ++i) counts[i] = 0;
    }
    __device__ bool is_full() const { return reached(counts[2 * slot], pass + 1); }
    __device__ bool is_empty() const { return reached(counts[2 * slot + 1], pass * TEAM_WARPS); }
    __device__ void give_back() const {
        __threadfence_block();
        atomicAdd(const_cast<unsigned *>(counts) + 2 * slot + 1, 1u);
    }

    // The fetching warp's side; all its lanes do it.
    static constexpr int FETCHING_LANES = 32;
    __device__ void fetch(const unsigned char *from, int bytes) {
        for (int i = threadIdx.x % 32 * 16; i < bytes; i += 32 * 16) ptx::cp_async_16(chunk() + i, from + i);
        ptx::cp_async_commit();
        ++fetched;
    }
    // Tell the consumers of all chunks but the newest few.
    __device__ void hand_over() {
        ptx::cp_async_wait<AHEAD>();
        publish(AHEAD);
    }
    __device__ void hand_over_all() {
        ptx::cp_async_wait<0>();
        publish(0);
    }

  private:
    // The consumers read after a poll that found enough.
    __device__ static bool reached(unsigned seen, unsigned wanted) {
        if (static_cast<int>(seen - wanted) < 0) {
            ptx::nanosleep(20);
            return false;
        }
        __threadfence_block();
        return true;
    }
    __device__ void publish(unsigned but) {
        __threadfence_block();
        __syncwarp();
        for (; fetched - handed_over > but; ++handed_over) {
            if (threadIdx.x % 32 == 0) counts[2 * oldest.slot] = oldest.pass + 1;
            oldest.advance();
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

// The fetching warp. `halt` is set when the consumers have ended, perhaps before the last token.
struct Producer {
    const PersistentParams &p;
    const volatile int *halt;
    Ring ring;

    __device__ Producer(const PersistentParams &p_, unsigned char *shared, const volatile int *halt_)
        : p(p_), halt(halt_), ring(p_, shared) {}

    __device__ __forceinline__ void run(const int *words, int rows, const PersistentLayer *layers) {
        if (threadIdx.x % 32 >= Ring::FETCHING_LANES) return;
        bool going_on = true;
        for (int token = 0; going_on && token < p.tokens; ++token) {
            for (int r = 0; going_on && r < rows; ++r) {
                const Row row = {words + r * ROW_WORDS};
                const void *const matrix = matrix_of(p, layers, row);
                if (matrix) going_on = fetch(token, r, row, static_cast<const unsigned char *>(matrix));
            }
        }
        ring.hand_over_all();
        arrive();
    }

    // False: the consumers have ended.
    __device__ __forceinline__ bool fetch(int token, int r, const Row &row, const unsigned char *matrix) {
        const int columns = columns_of(p, row.kind());
        const unsigned char *at = matrix + row.first() * packing::tile_bytes(columns);
        for (int tile = 0; tile < row.count(); ++tile) {
            for (int column = 0; column < columns; column += packing::CHUNK_COLUMNS) {
                const int bytes = packing::tile_bytes(min(packing::CHUNK_COLUMNS, columns - column));
                bool going_on = true;
                REMOVABLE("empty slot", going_on = await_empty(token, r));
                if (!going_on) return false;
                ring.fetch(at, bytes);
                ring.hand_over();
                ring.advance();
                at += bytes;
            }
        }
        return true;
    }

    __device__ bool await_empty(int token, int r) {
        if (ring.is_empty()) return true;
        ring.hand_over_all();  // what frees the slot may wait for these
        for (int polls = 0; !ring.is_empty();) {
            if (*halt) return false;
            if (++polls > p.patience) give_up(p, SLOT_NOT_EMPTY, token, r, ring.slot, ring.pass, 0);
        }
        return true;
    }

    // Copies that are on their way write into this block's memory: it must not end before they have arrived. From the
    // slot that would have been next, the ring's slots hold the chunks in their order; the first pass may be short.
    __device__ void arrive() {
        for (int i = 0; i < ring.slots; ++i) {
            if (ring.pass > 0) {
                Ring last = ring;
                last.pass -= 1;
                await_full(last, p, -1, -1);
            }
            ring.advance();
        }
    }
};

}  // namespace persistent
