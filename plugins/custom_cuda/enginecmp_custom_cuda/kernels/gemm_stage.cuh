// What a GEMM's block has in shared memory, and how it gets there: shapes of tile, places, and the loader of stages.
//
// A "group" is the 32 bytes of a token's row that one mma takes: 32 int8 (Q8_0, Q4_0) or 16 half or bf16 (F16, BF16). A
// stage is GROUPS of them, for all rows and tokens of the tile; STAGES are in flight.
//
// A warp owns 64 rows, as 4 mma tiles whose rows are dealt so that a lane ends with 8 neighbouring rows of a token:
// the tile's row 8 g + 2 m + h sits in slot 16 m + 8 h + g, mma tile m, where lane 4 g + t of the accumulator has
// rows g and g + 8. So pairs of rows (gate and up, the halves of a rotation) never leave a lane and stores are wide.
//
// Shared rows are P = 2, 4 or 8 units of 16 bytes. Unit u of slot s lies at (r P + (u ^ (r P / 8 mod P))) with
// r = s ^ (s / 8 mod 8): 8 slots that one ldmatrix phase reads cover all banks, and so do neighbouring rows written.
#pragma once
#include "kernel.h"
#include "packing.cuh"
#include "prefill_params.h"
#include "ptx.cuh"

namespace gemm {

constexpr bool QUANTIZED = packing::SCALED;
constexpr int GROUP_COLUMNS = QUANTIZED ? 32 : 16;              // columns of a group
constexpr int GROUP_BYTES = 32;                                 // of a's row
constexpr int WEIGHT_BYTES = WEIGHT == WEIGHT_Q4_0 ? 16 : 32;   // of a row of W, a group
constexpr int CHUNK = packing::CHUNK_COLUMNS;
constexpr int WARP_ROWS = 64;

// One shape of tile. WARPS_K warps share rows and tokens and take the groups of a stage in turn.
template <int WARPS_ROWS_, int WARPS_TOKENS_, int WARPS_K_, int TOKEN_TILES_, int GROUPS_, int STAGES_> struct Shape {
    static constexpr int WARPS_ROWS = WARPS_ROWS_, WARPS_TOKENS = WARPS_TOKENS_, WARPS_K = WARPS_K_;
    static constexpr int TOKEN_TILES = TOKEN_TILES_;  // of 8 tokens, of a warp; even
    static constexpr int GROUPS = GROUPS_, STAGES = STAGES_;
    static constexpr int THREADS = 32 * WARPS_ROWS * WARPS_TOKENS * WARPS_K;
    static constexpr int ROWS = WARP_ROWS * WARPS_ROWS, TOKENS = 8 * TOKEN_TILES * WARPS_TOKENS;
    static constexpr int WEIGHT_ROW = WEIGHT_BYTES * GROUPS, TOKEN_ROW = GROUP_BYTES * GROUPS;
    static constexpr int TOKENS_AT = ROWS * WEIGHT_ROW;
    static constexpr int WEIGHT_SCALES_AT = TOKENS_AT + TOKENS * TOKEN_ROW;
    static constexpr int TOKEN_SCALES_AT = WEIGHT_SCALES_AT + (QUANTIZED ? 4 * ROWS * GROUPS : 0);
    static constexpr int STAGE_BYTES = TOKEN_SCALES_AT + (QUANTIZED ? 4 * TOKENS * GROUPS : 0);
    static constexpr int SCALES_PER_THREAD = QUANTIZED ? ROWS * GROUPS / THREADS : 1;
    static_assert(CHUNK % (GROUPS * GROUP_COLUMNS) == 0, "a stage lies in one chunk");
    static_assert(GROUPS % WARPS_K == 0 && TOKEN_TILES % 2 == 0 && STAGES >= 3, "");
    static_assert(!QUANTIZED || ROWS * GROUPS % THREADS == 0, "every thread fetches as many scales");
    // The warps that share rows hand their sums over through the stages' memory.
    static_assert((WARPS_K - 1) * ROWS * TOKENS * 4 <= STAGES * STAGE_BYTES, "");
};

// Byte of a 16-byte unit in a shared array of rows of ROW_BYTES. Every bit of it is an exclusive or of bits of slot and
// unit, so place(a ^ b, u ^ v) is place(a, u) ^ place(b, v): what is known at compilation costs one exclusive or.
template <int ROW_BYTES> __device__ constexpr unsigned place(unsigned slot, unsigned unit) {
    constexpr unsigned P = ROW_BYTES / 16;
    static_assert(P == 2 || P == 4 || P == 8, "");
    const unsigned row = slot ^ (slot >> 3 & 7);
    return (row * P + (unit ^ (row / (8 / P) & (P - 1)))) * 16;
}

// Of 64 rows of a warp; linear over bits too.
__device__ constexpr unsigned slot_of(unsigned row) {
    return (row & ~63u) + (row >> 1 & 3) * 16 + (row & 1) * 8 + (row >> 3 & 7);
}

// What a thread copies: of each operand the same 16-byte unit of rows PASS apart, so that places differ by a constant.
// They are computed again for every stage: kept, they would push sums out of the registers. Rows and tokens beyond the
// last are copies of it: what becomes of them is not stored.
template <class S> struct Loader {
    static constexpr unsigned WEIGHT_UNITS = S::WEIGHT_ROW / 16, WEIGHT_PASS = S::THREADS / WEIGHT_UNITS;
    static constexpr unsigned TOKEN_UNITS = S::TOKEN_ROW / 16, TOKEN_PASS = S::THREADS / TOKEN_UNITS;
    static constexpr unsigned SCALE_PASS = S::THREADS / S::GROUPS;
    static constexpr unsigned STAGE_COLUMNS = S::GROUPS * GROUP_COLUMNS, TILE_ROWS = packing::TILE_ROWS;
    static constexpr unsigned TILE_BLOCK_BYTES = TILE_ROWS * (packing::BLOCK_BYTES + packing::SCALE_BYTES);
    static constexpr unsigned CHUNK_BYTES = CHUNK / packing::BLOCK * TILE_BLOCK_BYTES;  // of a tile's whole chunk
    static_assert(WEIGHT_PASS % TILE_ROWS == 0 && S::ROWS % WEIGHT_PASS == 0, "the same row of every tile");
    static_assert(S::TOKENS % TOKEN_PASS == 0 || S::TOKENS < TOKEN_PASS, "");
    static_assert((WEIGHT_PASS & (WEIGHT_PASS - 1)) == 0 && (TOKEN_PASS & (TOKEN_PASS - 1)) == 0, "no carries");

    const GemmParams &p;
    char *shared;
    unsigned first_row, first_token;
    unsigned tile_bytes;  // of 16 packed rows

    __device__ Loader(const GemmParams &p, char *shared)
        : p(p), shared(shared), first_row(blockIdx.y * S::ROWS), first_token(blockIdx.x * S::TOKENS),
          tile_bytes(static_cast<unsigned>(packing::tile_bytes(p.w.columns))) {}

    // The tile of a row of the block.
    __device__ const unsigned char *tile_of(unsigned local) const {
        const unsigned last = (static_cast<unsigned>(p.w.rows) - 1) / TILE_ROWS;
        const unsigned long long tile = min((first_row + local) / TILE_ROWS, last);
        return static_cast<const unsigned char *>(p.w.tiles) + tile * tile_bytes;
    }

    // Begin copying stage `step` of the columns into its place; beyond the last column there are zeros.
    __device__ void copy(int step, int last_step) const {
        if (step < last_step) {
            char *stage = shared + step % S::STAGES * S::STAGE_BYTES;
            copy_weights(stage, step);
            copy_tokens(stage + S::TOKENS_AT, step);
            if (QUANTIZED) copy_token_scales(stage + S::TOKEN_SCALES_AT, step);
        }
        ptx::cp_async_commit();
    }

    __device__ void copy_weights(char *to, unsigned step) const {
        const unsigned thread = ptx::thread_index(), local = thread / WEIGHT_UNITS, unit = thread % WEIGHT_UNITS;
        const unsigned column = step * STAGE_COLUMNS;
        const unsigned row_bytes = chunk_columns(column) / packing::BLOCK * packing::BLOCK_BYTES;
        const unsigned at = column % CHUNK / GROUP_COLUMNS * WEIGHT_BYTES + unit * 16;
        const unsigned from = column / CHUNK * CHUNK_BYTES + local % TILE_ROWS * row_bytes + at;
        const unsigned first = place<S::WEIGHT_ROW>(slot_of(local), unit);
#pragma unroll
        for (unsigned i = 0; i < S::ROWS / WEIGHT_PASS; ++i) {
            const unsigned slot = slot_of(i * WEIGHT_PASS);
            ptx::cp_async_16(to + (first ^ place<S::WEIGHT_ROW>(slot, 0)), tile_of(local + i * WEIGHT_PASS) + from,
                             at < row_bytes);
        }
    }

    __device__ void copy_tokens(char *to, unsigned step) const {
        const unsigned thread = ptx::thread_index(), local = thread / TOKEN_UNITS, unit = thread % TOKEN_UNITS;
        const unsigned row_bytes = static_cast<unsigned>(p.w.columns) / GROUP_COLUMNS * GROUP_BYTES;
        const unsigned at = step * S::TOKEN_ROW + unit * 16, last = p.finish.tokens - 1;
        const unsigned first = place<S::TOKEN_ROW>(local, unit);
        if (S::TOKENS < TOKEN_PASS && local >= S::TOKENS) return;
#pragma unroll
        for (unsigned i = 0; i < (S::TOKENS + TOKEN_PASS - 1) / TOKEN_PASS; ++i) {
            const unsigned long long token = min(first_token + local + i * TOKEN_PASS, last);
            ptx::cp_async_16(to + (first ^ place<S::TOKEN_ROW>(i * TOKEN_PASS, 0)),
                             static_cast<const char *>(p.a) + token * row_bytes + at, at < row_bytes);
        }
    }

    // [GROUPS][TOKENS]; the scales of a group are neighbours in memory, and their stride a multiple of 4.
    __device__ void copy_token_scales(char *to, unsigned step) const {
        const unsigned thread = ptx::thread_index();
        constexpr unsigned PIECES = S::TOKENS / 4;
        static_assert(S::GROUPS * PIECES <= S::THREADS, "one piece a thread");
        if (thread >= S::GROUPS * PIECES) return;
        const unsigned group = step * S::GROUPS + thread / PIECES, token = first_token + thread % PIECES * 4;
        const unsigned stride = p.scale_stride;
        const bool real = group < static_cast<unsigned>(p.w.columns) / packing::BLOCK && token < stride;
        ptx::cp_async_16(to + thread * 16, p.a_scale + static_cast<unsigned long long>(group) * stride + token, real);
    }

    // The scales of W are single halves without alignment, so they go through registers: fetched before a stage's
    // arithmetic, put down after it.
    __device__ void fetch_scales(float (&scale)[S::SCALES_PER_THREAD], unsigned step, unsigned last_step) const {
        const unsigned thread = ptx::thread_index();
        if (!QUANTIZED || step >= last_step) return;
        const unsigned column = step * STAGE_COLUMNS, blocks = chunk_columns(column) / packing::BLOCK;
        const unsigned local = thread / S::GROUPS, block = column % CHUNK / packing::BLOCK + thread % S::GROUPS;
        const unsigned weights = TILE_ROWS * blocks * packing::BLOCK_BYTES;
        const unsigned from = column / CHUNK * CHUNK_BYTES + weights + (local % TILE_ROWS * blocks + block) * 2;
#pragma unroll
        for (unsigned i = 0; i < S::SCALES_PER_THREAD; ++i) {
            const unsigned char *at = tile_of(local + i * SCALE_PASS) + from;
            scale[i] = 0.0f;
            if (block < blocks) scale[i] = ptx::half_to_float(*reinterpret_cast<const unsigned short *>(at));
        }
    }

    __device__ void put_scales(const float (&scale)[S::SCALES_PER_THREAD], unsigned step, unsigned last_step) const {
        const unsigned thread = ptx::thread_index();
        if (!QUANTIZED || step >= last_step) return;
        float *to = reinterpret_cast<float *>(shared + step % S::STAGES * S::STAGE_BYTES + S::WEIGHT_SCALES_AT);
#pragma unroll
        for (unsigned i = 0; i < S::SCALES_PER_THREAD; ++i)  // [GROUPS][ROWS]
            to[thread % S::GROUPS * S::ROWS + thread / S::GROUPS + i * SCALE_PASS] = scale[i];
    }

    // The width of the chunk of a column.
    __device__ unsigned chunk_columns(unsigned column) const {
        return min(static_cast<unsigned>(CHUNK), static_cast<unsigned>(p.w.columns) - column / CHUNK * CHUNK);
    }
};

}  // namespace gemm
