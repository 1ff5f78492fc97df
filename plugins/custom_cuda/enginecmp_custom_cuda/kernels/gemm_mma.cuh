// The tile of a tensor-core GEMM: values[t][row] = sum over columns of W[row] a[t], for all kinds with an mma.
//
// Weights are the mma's 16-row operand, tokens its 8 columns. A "group" is the 32 bytes of a's row that one mma takes:
// 32 int8 (Q8_0, Q4_0) or 16 half or bf16 (F16, BF16). A stage is GROUPS of them, for all rows and tokens of the tile,
// in shared memory; STAGES are in flight.
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
#include "prefill_finish.cuh"
#include "ptx.cuh"

namespace gemm {

constexpr bool QUANTIZED = packing::SCALED;
constexpr int GROUP_COLUMNS = QUANTIZED ? 32 : 16;              // columns of a group
constexpr int GROUP_BYTES = 32;                                 // of a's row
constexpr int WEIGHT_BYTES = WEIGHT == WEIGHT_Q4_0 ? 16 : 32;   // of a row of W, a group
constexpr int CHUNK = packing::CHUNK_COLUMNS;
constexpr int WARP_ROWS = 64;
constexpr int MAGIC = 0x4b400000;  // the bits of 1.5 * 2^23: adding a small int to them adds it to the float

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

// Byte of a 16-byte unit in a shared array of rows of ROW_BYTES.
template <int ROW_BYTES> __device__ inline int place(int slot, int unit) {
    constexpr int P = ROW_BYTES / 16;
    static_assert(P == 2 || P == 4 || P == 8, "");
    const int row = slot ^ (slot >> 3 & 7);
    return (row * P + (unit ^ (row / (8 / P) & (P - 1)))) * 16;
}

__device__ inline int slot_of(int row) {  // of 64 rows of a warp
    return (row & ~63) + (row >> 1 & 3) * 16 + (row & 1) * 8 + (row >> 3 & 7);
}

// What a thread copies: of each operand the same 16-byte unit of rows PASS apart, so that one address serves all.
// Places are computed again for every stage: kept, they would push sums out of the registers.
template <class S> struct Loader {
    static constexpr int WEIGHT_UNITS = S::WEIGHT_ROW / 16, WEIGHT_PASS = S::THREADS / WEIGHT_UNITS;
    static constexpr int TOKEN_UNITS = S::TOKEN_ROW / 16, TOKEN_PASS = S::THREADS / TOKEN_UNITS;
    static constexpr int SCALE_PASS = S::THREADS / S::GROUPS;
    static_assert(WEIGHT_PASS % packing::TILE_ROWS == 0 && S::ROWS % WEIGHT_PASS == 0, "the same row of every tile");
    static_assert(S::TOKENS % TOKEN_PASS == 0 || S::TOKENS < TOKEN_PASS, "");

    const GemmParams &p;
    char *shared;
    int first_row, first_token;
    int tile_bytes;  // of 16 packed rows

    __device__ Loader(const GemmParams &p, char *shared)
        : p(p), shared(shared), first_row(blockIdx.y * S::ROWS), first_token(blockIdx.x * S::TOKENS),
          tile_bytes(static_cast<int>(packing::tile_bytes(p.w.columns))) {}

    // The tile of a row of the block.
    __device__ const unsigned char *tile_of(int local) const {
        const long long tile = (first_row + local) / packing::TILE_ROWS;
        return static_cast<const unsigned char *>(p.w.tiles) + tile * tile_bytes;
    }
    __device__ int token_bytes() const { return p.w.columns / GROUP_COLUMNS * GROUP_BYTES; }

    // Begin copying stage `step` of the columns into its place; beyond a matrix's end there are zeros.
    __device__ void copy(int step, int last_step) const {
        if (step < last_step) {
            char *stage = shared + step % S::STAGES * S::STAGE_BYTES;
            copy_weights(stage, step);
            copy_tokens(stage + S::TOKENS_AT, step);
            if (QUANTIZED) copy_token_scales(stage + S::TOKEN_SCALES_AT, step);
        }
        ptx::cp_async_commit();
    }

    __device__ void copy_weights(char *to, int step) const {
        const int thread = ptx::thread_index();
        const int column = step * S::GROUPS * GROUP_COLUMNS, local = thread / WEIGHT_UNITS;
        const int row_bytes = chunk_columns(column) / packing::BLOCK * packing::BLOCK_BYTES;
        const int unit = thread % WEIGHT_UNITS, at = column % CHUNK / GROUP_COLUMNS * WEIGHT_BYTES + unit * 16;
        const unsigned char *from = tile_of(local) + chunk_at(column) + (local % packing::TILE_ROWS * row_bytes + at);
        const long long pass_bytes = static_cast<long long>(tile_bytes) * (WEIGHT_PASS / packing::TILE_ROWS);
#pragma unroll
        for (int i = 0; i < S::ROWS / WEIGHT_PASS; ++i) {
            const int row = local + i * WEIGHT_PASS;
            const bool real = first_row + row < p.w.rows && at < row_bytes;
            // Where nothing is read, the address still has to be one of the matrix.
            const void *source = real ? from + i * pass_bytes : p.w.tiles;
            ptx::cp_async_16(to + place<S::WEIGHT_ROW>(slot_of(row), unit), source, real);
        }
    }

    __device__ void copy_tokens(char *to, int step) const {
        const int thread = ptx::thread_index();
        const int local = thread / TOKEN_UNITS, unit = thread % TOKEN_UNITS;
        const int row_bytes = token_bytes(), at = step * S::TOKEN_ROW + unit * 16;
        const char *from = static_cast<const char *>(p.a);
#pragma unroll
        for (int i = 0; i < (S::TOKENS + TOKEN_PASS - 1) / TOKEN_PASS; ++i) {
            const int token = local + i * TOKEN_PASS;
            if (S::TOKENS < TOKEN_PASS && token >= S::TOKENS) break;
            const bool real = first_token + token < p.finish.tokens && at < row_bytes;
            const void *source = real ? from + static_cast<long long>(first_token + token) * row_bytes + at : from;
            ptx::cp_async_16(to + place<S::TOKEN_ROW>(token, unit), source, real);
        }
    }

    // [GROUPS][TOKENS]; the scales of a group are neighbours in memory, and their stride a multiple of 4.
    __device__ void copy_token_scales(char *to, int step) const {
        const int thread = ptx::thread_index();
        constexpr int PIECES = S::TOKENS / 4;
        static_assert(S::GROUPS * PIECES <= S::THREADS, "one piece a thread");
        if (thread >= S::GROUPS * PIECES) return;
        const int group = step * S::GROUPS + thread / PIECES, token = first_token + thread % PIECES * 4;
        const bool real = group < p.w.columns / packing::BLOCK && token < p.scale_stride;
        const float *from = p.a_scale + (real ? static_cast<long long>(group) * p.scale_stride + token : 0);
        ptx::cp_async_16(to + thread * 16, from, real);
    }

    // The scales of W are single halves without alignment, so they go through registers: fetched before a stage's
    // arithmetic, put down after it.
    __device__ void fetch_scales(float (&scale)[S::SCALES_PER_THREAD], int step, int last_step) const {
        const int thread = ptx::thread_index();
        if (!QUANTIZED || step >= last_step) return;
        const int column = step * S::GROUPS * GROUP_COLUMNS, blocks = chunk_columns(column) / packing::BLOCK;
        const int local = thread / S::GROUPS, block = column % CHUNK / packing::BLOCK + thread % S::GROUPS;
        const int scales_at = packing::TILE_ROWS * blocks * packing::BLOCK_BYTES;
        const unsigned char *from = tile_of(local) + chunk_at(column) + scales_at;
        const long long pass_bytes = static_cast<long long>(tile_bytes) * (SCALE_PASS / packing::TILE_ROWS);
#pragma unroll
        for (int i = 0; i < S::SCALES_PER_THREAD; ++i) {
            scale[i] = 0.0f;
            if (first_row + local + i * SCALE_PASS < p.w.rows && block < blocks) {
                const unsigned short *scales = reinterpret_cast<const unsigned short *>(from + i * pass_bytes);
                scale[i] = ptx::half_to_float(scales[local % packing::TILE_ROWS * blocks + block]);
            }
        }
    }

    __device__ void put_scales(const float (&scale)[S::SCALES_PER_THREAD], int step, int last_step) const {
        const int thread = ptx::thread_index();
        if (!QUANTIZED || step >= last_step) return;
        float *to = reinterpret_cast<float *>(shared + step % S::STAGES * S::STAGE_BYTES + S::WEIGHT_SCALES_AT);
#pragma unroll
        for (int i = 0; i < S::SCALES_PER_THREAD; ++i)  // [GROUPS][ROWS]
            to[thread % S::GROUPS * S::ROWS + thread / S::GROUPS + i * SCALE_PASS] = scale[i];
    }

    // Of the chunk of a column: its width, and its place in a tile.
    __device__ int chunk_columns(int column) const { return min(CHUNK, p.w.columns - column / CHUNK * CHUNK); }
    __device__ int chunk_at(int column) const {
        return column / CHUNK * static_cast<int>(packing::tile_bytes(CHUNK));
    }
};

// Nibbles to int8: 0..15 becomes -8..7 in each byte.
__device__ inline unsigned minus_8(unsigned nibbles) {
    return ((nibbles | 0x80808080u) - 0x08080808u) ^ 0x80808080u;
}

// The 16 x 32-byte operand of mma tile m.
template <class S>
__device__ inline void load_weights(unsigned (&a)[4], const char *stage, int warp_slot, int group, int m) {
    const int lane = threadIdx.x % 32, slot = warp_slot + m * 16 + lane % 16;
    if (WEIGHT == WEIGHT_Q4_0) {
        // A byte has elements j and j + 16 of its block: the operand's near and far half of k.
        unsigned nibbles[2];
        ptx::ldmatrix_x2(nibbles, stage + place<S::WEIGHT_ROW>(slot, group));
        a[0] = minus_8(nibbles[0] & 0x0f0f0f0fu);
        a[1] = minus_8(nibbles[1] & 0x0f0f0f0fu);
        a[2] = minus_8(nibbles[0] >> 4 & 0x0f0f0f0fu);
        a[3] = minus_8(nibbles[1] >> 4 & 0x0f0f0f0fu);
    } else {
        ptx::ldmatrix_x4(a, stage + place<S::WEIGHT_ROW>(slot, group * 2 + lane / 16));
    }
}

// acc[m][n]: mma tile m of the warp's rows, n of its tokens.
template <class S>
__device__ inline void multiply(float (&acc)[4][S::TOKEN_TILES][4], const char *stage, int warp_row, int warp_token,
                                int group) {
    const int lane = threadIdx.x % 32;
    unsigned b[S::TOKEN_TILES][2];
#pragma unroll
    for (int n = 0; n < S::TOKEN_TILES; n += 2) {
        unsigned both[4];
        const int token = warp_token + n * 8 + lane / 16 * 8 + lane % 8;
        ptx::ldmatrix_x4(both, stage + S::TOKENS_AT + place<S::TOKEN_ROW>(token, group * 2 + lane / 8 % 2));
        b[n][0] = both[0];
        b[n][1] = both[1];
        b[n + 1][0] = both[2];
        b[n + 1][1] = both[3];
    }
    if (!QUANTIZED) {
#pragma unroll
        for (int m = 0; m < 4; ++m) {
            unsigned a[4];
            load_weights<S>(a, stage, warp_row, group, m);
#pragma unroll
            for (int n = 0; n < S::TOKEN_TILES; ++n) {
                if (WEIGHT == WEIGHT_BF16)
                    ptx::mma_bf16(acc[m][n], a, b[n]);
                else
                    ptx::mma_f16(acc[m][n], a, b[n]);
            }
        }
        return;
    }
    const int magic_bits[4] = {MAGIC, MAGIC, MAGIC, MAGIC};
    const float magic = 12582912.0f;
    const float *row_scale = reinterpret_cast<const float *>(stage + S::WEIGHT_SCALES_AT) + group * S::ROWS;
    const float *token_scale = reinterpret_cast<const float *>(stage + S::TOKEN_SCALES_AT) + group * S::TOKENS;
    float2 sx[S::TOKEN_TILES];
#pragma unroll
    for (int n = 0; n < S::TOKEN_TILES; ++n)
        sx[n] = *reinterpret_cast<const float2 *>(token_scale + warp_token + n * 8 + lane % 4 * 2);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
        unsigned a[4];
        load_weights<S>(a, stage, warp_row, group, m);
        const float2 sw = *reinterpret_cast<const float2 *>(row_scale + warp_row + lane / 4 * 8 + 2 * m);
#pragma unroll
        for (int n = 0; n < S::TOKEN_TILES; ++n) {
            int dot[4];
            ptx::mma_s8(dot, a, b[n], magic_bits);
            acc[m][n][0] = fmaf(__uint_as_float(dot[0]) - magic, sw.x * sx[n].x, acc[m][n][0]);
            acc[m][n][1] = fmaf(__uint_as_float(dot[1]) - magic, sw.x * sx[n].y, acc[m][n][1]);
            acc[m][n][2] = fmaf(__uint_as_float(dot[2]) - magic, sw.y * sx[n].x, acc[m][n][2]);
            acc[m][n][3] = fmaf(__uint_as_float(dot[3]) - magic, sw.y * sx[n].y, acc[m][n][3]);
        }
    }
}

// The warps that took other groups hand their sums to the first, in order.
template <class S> __device__ inline void gather(float (&acc)[4][S::TOKEN_TILES][4], float *sums, int k, int others) {
    constexpr int N = S::TOKEN_TILES, VALUES = 4 * N * 4, THREADS = S::THREADS / S::WARPS_K;
    if (k > 0) {
#pragma unroll
        for (int i = 0; i < VALUES; ++i)
            sums[((k - 1) * VALUES + i) * THREADS + others] = acc[i / 4 / N][i / 4 % N][i % 4];
    }
    __syncthreads();
    if (k > 0) return;
#pragma unroll
    for (int other = 0; other < S::WARPS_K - 1; ++other)
#pragma unroll
        for (int i = 0; i < VALUES; ++i)
            acc[i / 4 / N][i / 4 % N][i % 4] += sums[(other * VALUES + i) * THREADS + others];
}

template <class S> __device__ inline void run(const GemmParams &p, char *shared) {
    const Loader<S> loader(p, shared);
    constexpr int STAGE_COLUMNS = S::GROUPS * GROUP_COLUMNS;
    const int steps = (p.w.columns + STAGE_COLUMNS - 1) / STAGE_COLUMNS, share = (steps + p.splits - 1) / p.splits;
    const int split = blockIdx.z, first = min(steps, split * share), last = min(steps, first + share);
    const int warp = threadIdx.x / 32, k = warp % S::WARPS_K;
    const int warp_row = warp / S::WARPS_K % S::WARPS_ROWS * WARP_ROWS;
    const int warp_token = warp / S::WARPS_K / S::WARPS_ROWS * S::TOKEN_TILES * 8;

    float acc[4][S::TOKEN_TILES][4] = {};
    float scale[S::SCALES_PER_THREAD];
#pragma unroll 1
    for (int i = 0; i < S::STAGES - 1; ++i) {
        loader.copy(first + i, last);
        loader.fetch_scales(scale, first + i, last);
        loader.put_scales(scale, first + i, last);
    }
    for (int step = first; step < last; ++step) {
        ptx::cp_async_wait<S::STAGES - 2>();
        __syncthreads();  // this step's stage is whole, and nobody reads the one that is filled next
        const int next = step + S::STAGES - 1;
        loader.copy(next, last);
        loader.fetch_scales(scale, next, last);
        const char *stage = shared + step % S::STAGES * S::STAGE_BYTES;
#pragma unroll 1
        for (int group = 0; group < S::GROUPS / S::WARPS_K; ++group)
            multiply<S>(acc, stage, warp_row, warp_token, group * S::WARPS_K + k);
        loader.put_scales(scale, next, last);
    }
    if (S::WARPS_K > 1) {
        __syncthreads();  // the stages' memory is free
        gather<S>(acc, reinterpret_cast<float *>(shared), k, (warp / S::WARPS_K) * 32 + threadIdx.x % 32);
        if (k > 0) return;
    }
    const int lane = threadIdx.x % 32, row = loader.first_row + warp_row + lane / 4 * 8;
    // One copy of the finishing code: the next tokens' sums move to the front, registers have no index.
#pragma unroll 1
    for (int n = 0; n < S::TOKEN_TILES; ++n) {
#pragma unroll 1
        for (int j = 0; j < 2; ++j) {
            const int token = loader.first_token + warp_token + n * 8 + lane % 4 * 2 + j;
            float value[8];
#pragma unroll
            for (int m = 0; m < 4; ++m) {
                value[2 * m] = j ? acc[m][0][1] : acc[m][0][0];
                value[2 * m + 1] = j ? acc[m][0][3] : acc[m][0][2];
            }
            if (p.splits > 1)
                prefill::store_partial(p.partial, split, p.finish, token, row, value);
            else
                prefill::finish(p.finish, token, row, value);
        }
#pragma unroll
        for (int m = 0; m < 4; ++m)
#pragma unroll
            for (int other = 1; other < S::TOKEN_TILES; ++other)
#pragma unroll
                for (int i = 0; i < 4; ++i) acc[m][other - 1][i] = acc[m][other][i];
    }
}

}  // namespace gemm
