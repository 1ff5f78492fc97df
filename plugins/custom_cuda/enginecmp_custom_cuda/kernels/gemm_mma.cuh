// The arithmetic of a tensor-core GEMM, for all kinds with an mma: weights are the mma's 16-row operand, tokens its 8
// columns. What lies where in shared memory is gemm_stage.cuh's.
#pragma once
#include "gemm_stage.cuh"
#include "kernel.h"
#include "prefill_finish.cuh"
#include "ptx.cuh"

namespace gemm {

constexpr int MAGIC_BITS = 0x4b400000;  // of the float 1.5 * 2^23

// Nibbles to int8: 0..15 becomes -8..7 in each byte.
__device__ inline unsigned minus_8(unsigned nibbles) {
    return ((nibbles | 0x80808080u) - 0x08080808u) ^ 0x80808080u;
}

// Where a lane begins to read the operands of its warp in a stage; other tiles and groups are an exclusive or away.
template <class S> struct Lane {
    unsigned weights, tokens;  // bytes
    unsigned row, token;       // of the block, the first of those that it ends with

    __device__ Lane() {
        const unsigned thread = ptx::thread_index(), lane = thread % 32, tile = thread / 32 / S::WARPS_K;
        const unsigned warp_row = tile % S::WARPS_ROWS * WARP_ROWS;
        const unsigned warp_token = tile / S::WARPS_ROWS * S::TOKEN_TILES * 8;
        const unsigned far = WEIGHT == WEIGHT_Q4_0 ? 0 : lane / 16;  // half of k, where rows have both
        weights = place<S::WEIGHT_ROW>(warp_row + lane % 16, far);
        tokens = place<S::TOKEN_ROW>(warp_token + lane / 16 * 8 + lane % 8, lane / 8 % 2);
        row = warp_row + lane / 4 * 8;
        token = warp_token + lane % 4 * 2;
    }
};

// The 16 x 32-byte operand of mma tile m.
template <class S>
__device__ inline void load_weights(unsigned (&a)[4], const char *stage, const Lane<S> &lane, unsigned group, int m) {
    if (WEIGHT == WEIGHT_Q4_0) {
        // A byte has elements j and j + 16 of its block: the operand's near and far half of k.
        unsigned nibbles[2];
        ptx::ldmatrix_x2(nibbles, stage + (lane.weights ^ place<S::WEIGHT_ROW>(m * 16, group)));
        a[0] = minus_8(nibbles[0] & 0x0f0f0f0fu);
        a[1] = minus_8(nibbles[1] & 0x0f0f0f0fu);
        a[2] = minus_8(nibbles[0] >> 4 & 0x0f0f0f0fu);
        a[3] = minus_8(nibbles[1] >> 4 & 0x0f0f0f0fu);
    } else {
        ptx::ldmatrix_x4(a, stage + (lane.weights ^ place<S::WEIGHT_ROW>(m * 16, group * 2)));
    }
}

// acc[m][n]: mma tile m of the warp's rows, n of its tokens.
template <class S>
__device__ inline void multiply(float (&acc)[4][S::TOKEN_TILES][4], const char *stage, const Lane<S> &lane,
                                unsigned group) {
    unsigned b[S::TOKEN_TILES][2];
#pragma unroll
    for (int n = 0; n < S::TOKEN_TILES; n += 2) {
        unsigned both[4];
        ptx::ldmatrix_x4(both, stage + S::TOKENS_AT + (lane.tokens ^ place<S::TOKEN_ROW>(n * 8, group * 2)));
        b[n][0] = both[0];
        b[n][1] = both[1];
        b[n + 1][0] = both[2];
        b[n + 1][1] = both[3];
    }
    if (!QUANTIZED) {
#pragma unroll
        for (int m = 0; m < 4; ++m) {
            unsigned a[4];
            load_weights<S>(a, stage, lane, group, m);
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
    // The bits of a float whose last place is 1: adding a small int to them adds it to the float, which saves the
    // conversion of every sum. Taking it away again is free where a row's scale is multiplied: a scale has 11 bits,
    // MAGIC 2, so their product is exact, and scaled() rounds once, as a product of sum and scale does.
    constexpr float MAGIC = 12582912.0f;  // 1.5 * 2^23; |sum| <= 32 * 127 * 128 < 2^22
    const int magic_bits[4] = {MAGIC_BITS, MAGIC_BITS, MAGIC_BITS, MAGIC_BITS};
    const auto scaled = [](int bits, float scale, float zero) { return fmaf(__uint_as_float(bits), scale, zero); };
    const float *row_scale = reinterpret_cast<const float *>(stage + S::WEIGHT_SCALES_AT) + group * S::ROWS;
    const float *token_scale = reinterpret_cast<const float *>(stage + S::TOKEN_SCALES_AT) + group * S::TOKENS;
    float2 sx[S::TOKEN_TILES];
#pragma unroll
    for (int n = 0; n < S::TOKEN_TILES; ++n)
        sx[n] = *reinterpret_cast<const float2 *>(token_scale + lane.token + n * 8);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
        unsigned a[4];
        load_weights<S>(a, stage, lane, group, m);
        // Read here and not earlier: all tiles' scales at once have no place in the registers.
        const volatile float *pair = row_scale + lane.row + 2 * m;
        const float2 sw = make_float2(pair[0], pair[1]);
        const float2 zero = make_float2(-MAGIC * sw.x, -MAGIC * sw.y);
#pragma unroll
        for (int n = 0; n < S::TOKEN_TILES; ++n) {
            int dot[4];
            ptx::mma_s8(dot, a, b[n], magic_bits);
            acc[m][n][0] = fmaf(scaled(dot[0], sw.x, zero.x), sx[n].x, acc[m][n][0]);
            acc[m][n][1] = fmaf(scaled(dot[1], sw.x, zero.x), sx[n].y, acc[m][n][1]);
            acc[m][n][2] = fmaf(scaled(dot[2], sw.y, zero.y), sx[n].x, acc[m][n][2]);
            acc[m][n][3] = fmaf(scaled(dot[3], sw.y, zero.y), sx[n].y, acc[m][n][3]);
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
        const Lane<S> lane;
#pragma unroll 1
        for (int group = 0; group < S::GROUPS / S::WARPS_K; ++group)
            multiply<S>(acc, stage, lane, group * S::WARPS_K + k);
        loader.put_scales(scale, next, last);
    }
    if (S::WARPS_K > 1) {
        __syncthreads();  // the stages' memory is free
        gather<S>(acc, reinterpret_cast<float *>(shared), k, (warp / S::WARPS_K) * 32 + threadIdx.x % 32);
        if (k > 0) return;
    }
    const Lane<S> lane;
    const int row = loader.first_row + lane.row;
    // One copy of the finishing code: the next tokens' sums move to the front, registers have no index.
#pragma unroll 1
    for (int n = 0; n < S::TOKEN_TILES; ++n) {
#pragma unroll 1
        for (int j = 0; j < 2; ++j) {
            const int token = loader.first_token + lane.token + n * 8 + j;
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
