// GEMMs in float32, weights of any kind: the exact path, and the one for cards without the mma of a kind.
//
// A block of 128 threads makes 64 rows times TOKENS tokens, 32 columns at a time. A thread has 8 neighbouring rows.
// Grid: (tiles of tokens, tiles of rows, splits), as for gemm_mma.cu.
#include "kernel.h"
#include "prefill_finish.cuh"
#include "prefill_weights.cuh"
#include "ptx.cuh"

namespace gemm {

constexpr int THREADS = 128, ROWS = 64, STEP = 32;
constexpr int PAD = 4;  // floats; keeps rows of shared memory aligned to 16 bytes

template <int TOKENS> struct Shared {
    float w[2][STEP][ROWS + PAD];
    float a[2][STEP][TOKENS + PAD];
};

template <int TOKENS> struct Fetched {
    static constexpr int PIECES = (TOKENS * STEP / 4 + THREADS - 1) / THREADS;  // of 4 floats
    float w[16];
    float4 a[PIECES];
};

template <int TOKENS>
__device__ inline void fetch(Fetched<TOKENS> &to, const GemmParams &p, int first_row, int first_token, int column) {
    const int row = first_row + threadIdx.x % ROWS;
    if (row < p.w.rows) {
        prefill::read_16(p.w, row, column + threadIdx.x / ROWS * 16, to.w);
    } else {
#pragma unroll
        for (int i = 0; i < 16; ++i) to.w[i] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < Fetched<TOKENS>::PIECES; ++i) {
        const int piece = i * THREADS + threadIdx.x, token = first_token + piece % TOKENS;
        const float *from = static_cast<const float *>(p.a) + static_cast<long long>(token) * p.w.columns + column;
        const bool real = token < p.finish.tokens && piece < TOKENS * STEP / 4;
        to.a[i] = real ? *reinterpret_cast<const float4 *>(from + piece / TOKENS * 4) : make_float4(0, 0, 0, 0);
    }
}

template <int TOKENS> __device__ inline void put(Shared<TOKENS> &to, const Fetched<TOKENS> &from, int half) {
#pragma unroll
    for (int i = 0; i < 16; ++i) to.w[half][threadIdx.x / ROWS * 16 + i][threadIdx.x % ROWS] = from.w[i];
#pragma unroll
    for (int i = 0; i < Fetched<TOKENS>::PIECES; ++i) {
        const int piece = i * THREADS + threadIdx.x, token = piece % TOKENS, k = piece / TOKENS * 4;
        if (piece >= TOKENS * STEP / 4) break;
        to.a[half][k][token] = from.a[i].x;
        to.a[half][k + 1][token] = from.a[i].y;
        to.a[half][k + 2][token] = from.a[i].z;
        to.a[half][k + 3][token] = from.a[i].w;
    }
}

template <int TOKENS> __device__ inline void run(const GemmParams &p, Shared<TOKENS> &shared) {
    constexpr int MINE = TOKENS / 16;  // tokens of a thread
    const int first_row = blockIdx.y * ROWS, first_token = blockIdx.x * TOKENS;
    const int my_row = threadIdx.x % 8 * 8, my_token = threadIdx.x / 8 * MINE;
    const int steps = p.w.columns / STEP, share = (steps + p.splits - 1) / p.splits;
    const int split = blockIdx.z, first = min(steps, split * share), last = min(steps, first + share);

    float acc[MINE][8] = {};
    Fetched<TOKENS> fetched;
    if (first < last) {
        fetch(fetched, p, first_row, first_token, first * STEP);
        put(shared, fetched, first % 2);
    }
    for (int step = first; step < last; ++step) {
        __syncthreads();  // this half is whole, and nobody reads the other any more
        if (step + 1 < last) fetch(fetched, p, first_row, first_token, (step + 1) * STEP);
#pragma unroll 8
        for (int k = 0; k < STEP; ++k) {
            const float *w = &shared.w[step % 2][k][my_row];
            const float4 low = *reinterpret_cast<const float4 *>(w), high = *reinterpret_cast<const float4 *>(w + 4);
#pragma unroll
            for (int i = 0; i < MINE; ++i) {
                const float a = shared.a[step % 2][k][my_token + i];
                acc[i][0] = fmaf(low.x, a, acc[i][0]);
                acc[i][1] = fmaf(low.y, a, acc[i][1]);
                acc[i][2] = fmaf(low.z, a, acc[i][2]);
                acc[i][3] = fmaf(low.w, a, acc[i][3]);
                acc[i][4] = fmaf(high.x, a, acc[i][4]);
                acc[i][5] = fmaf(high.y, a, acc[i][5]);
                acc[i][6] = fmaf(high.z, a, acc[i][6]);
                acc[i][7] = fmaf(high.w, a, acc[i][7]);
            }
        }
        if (step + 1 < last) put(shared, fetched, (step + 1) % 2);
    }
#pragma unroll
    for (int i = 0; i < MINE; ++i) {
        const int token = first_token + my_token + i, row = first_row + my_row;
        if (p.splits > 1)
            prefill::store_partial(p.partial, split, p.finish, token, row, acc[i]);
        else
            prefill::finish(p.finish, token, row, acc[i]);
    }
}

}  // namespace gemm

KERNEL(128, 4, gemm_medium, GemmParams) {
    __shared__ gemm::Shared<64> shared;
    gemm::run<64>(p, shared);
}

KERNEL(128, 4, gemm_small, GemmParams) {
    __shared__ gemm::Shared<16> shared;
    gemm::run<16>(p, shared);
}
