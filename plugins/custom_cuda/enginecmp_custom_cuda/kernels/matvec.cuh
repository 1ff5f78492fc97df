// A block's share of a matrix times the activations of BATCH sequences.
//
// A warp takes 4 rows at a time; `split_k` warps share the columns of the same 4 rows, so that narrow matrices keep all
// multiprocessors busy too. Weights of the first rows are loaded before the launch before this one has ended, because
// they depend on nothing; then every block makes the activations for itself, in shared memory.
#pragma once
#include "dot.cuh"
#include "kernel.h"
#include "norm.cuh"
#include "params.h"
#include "ptx.cuh"
#include "warp.cuh"

namespace matvec {

constexpr int THREADS = 256, WARPS = THREADS / 32;
// Of a multiprocessor, by what the sums take: as many as there are registers for. Three leave room for the next
// launch's blocks to load their first weights while this one runs.
constexpr int BLOCKS = BATCH == 1 ? 3 : BATCH == 8 && !dot::Q8 ? 1 : 2;
constexpr int AHEAD = BATCH == 1 ? 2 : 4;  // columns of activations, by fours, that a thread asks for at once
constexpr int SHARE = THREADS / BATCH;  // threads that make the activations of one sequence, all sequences at once
static_assert(SHARE % 32 == 0, "a warp works for one sequence");

// Warm the L2 cache with a vector that depends on no earlier launch.
__device__ inline void prefetch(const float *vector, int length) {
#pragma unroll 1
    for (int i = threadIdx.x * 32; i < length; i += THREADS * 32) ptx::prefetch_l2(vector + i);
}

// Where the activations come from. `load(b, i)` gives columns 4 i to 4 i + 3 of sequence b; AHEAD of them go together.
struct Plain {
    static constexpr int AHEAD = 4;
    const float *x;
    int columns;
    __device__ float4 load(int b, int i) const {
        return reinterpret_cast<const float4 *>(x + static_cast<long long>(b) * columns)[i];
    }
    __device__ void end(int) {}
};

// x * weight; 1 / rms(x) is one number for all columns, so it is multiplied into the sums of the rows. That saves a
// pass over x and a barrier, and int8 activations are the same up to rounding: their scale is proportional to x.
struct Normed {
    static constexpr int AHEAD = matvec::AHEAD;
    const float *x, *weight;
    int columns;
    float (*squares)[WARPS];  // [BATCH], shared
    float square = 0.0f;

    __device__ float4 load(int b, int i) {
        const float4 v = reinterpret_cast<const float4 *>(x + static_cast<long long>(b) * columns)[i];
        const float4 w = reinterpret_cast<const float4 *>(weight)[i];
        square += rms_norm::square4(v);
        return make_float4(v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w);
    }
    __device__ void end(int b) {
        const float total = warp::sum(square);
        if (threadIdx.x % 32 == 0) squares[b][threadIdx.x % SHARE / 32] = total;
    }
    // After the barrier: 1 / rms of sequence b.
    __device__ static float inverse(const float (*squares)[WARPS], int b, int columns, float epsilon) {
        float total = 0.0f;
#pragma unroll
        for (int i = 0; i < SHARE / 32; ++i) total += squares[b][i];
        return rms_norm::inverse_rms(total, columns, epsilon);
    }
};

// Fill the activations; whoever reads them waits for the block first.
template <class Source>
__device__ inline void fill(const dot::Activations &activations, int columns, const int *position, Source &source) {
    constexpr int AHEAD = Source::AHEAD;
    const int fours = columns / 4, b = threadIdx.x / SHARE;
    // What a lone sequence reads is there even when it is empty: then nothing waits for its position.
    if (BATCH > 1 && position[b] < 0) return;
#pragma unroll 1
    for (int base = 0; base < fours; base += SHARE * AHEAD) {
        float4 x[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            const int i = base + k * SHARE + threadIdx.x % SHARE;
            x[k] = i < fours ? source.load(b, i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            const int i = base + k * SHARE + threadIdx.x % SHARE;
            if (base + k * SHARE < fours) activations.store(b, i, x[k], i < fours);
        }
    }
    source.end(b);
}

// This block's rows of w, piece by piece.
struct Rows {
    const Matrix &w;
    int split_k, part;               // warps that share rows; which of them this is
    int first, group, step, groups;  // of 4 rows: the block's first, this warp's, distance to the next, number of all
    int pieces;                      // slabs of a row that this warp takes
    dot::Piece ring[dot::STAGES];

    __device__ Rows(const Matrix &w_, int split_k_) : w(w_), split_k(split_k_) {
        const int warp = threadIdx.x / 32, bits = 31 - __clz(split_k);  // a power of two: shifts, not divisions
        part = warp & (split_k - 1);
        first = blockIdx.x * (WARPS >> bits);
        group = first + (warp >> bits);
        step = gridDim.x * (WARPS >> bits);
        groups = (w.rows + dot::ROWS - 1) / dot::ROWS;
        pieces = (dot::slabs(w.columns) - part + split_k - 1) >> bits;
    }

    __device__ void load(int slot, int of_group, int piece) {
        if (of_group < groups && piece < pieces) ring[slot].load(w, of_group, part + piece * split_k);
    }

    // Before anything that earlier launches make is read.
    __device__ void begin() {
#pragma unroll
        for (int s = 0; s < dot::STAGES; ++s) load(s, group, s);
    }

    // For every 4 rows: finish.store(row, b, sum, the sum of row ^ 1, what finish.ahead(row, b) gave before). One lane
    // a row and sequence calls it; its sequence is lane % BATCH. The activations are complete for the whole block.
    template <class Finish> __device__ void run(const dot::Activations &activations, Finish &finish) {
        constexpr int VALUES = dot::LOADS * BATCH;  // of dot::ROW_LANES lanes, after they have added up theirs
        constexpr int PARTNER = dot::ROW_LANES == 32 ? BATCH : 16;  // lanes to the one with the other row of a pair
        __shared__ float sums[2][WARPS][32];
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, value = lane % dot::ROW_LANES;
        const int row = dot::row_of(value / BATCH, lane), b = value % BATCH;  // of the sum that this lane ends with
        const bool finishing = part == 0 && value < VALUES;
        // By the block's first group, so that all its warps make as many rounds.
        for (int parity = 0; first < groups; first += step, group += step, parity ^= 1) {
            const bool real = finishing && group * dot::ROWS + row < w.rows;
            typename Finish::Ahead ahead;
            if (real) ahead = finish.ahead(group * dot::ROWS + row, b);
            float sum[dot::LOADS][BATCH];
#pragma unroll
            for (int i = 0; i < dot::LOADS; ++i)
#pragma unroll
                for (int c = 0; c < BATCH; ++c) sum[i][c] = 0.0f;
            for (int base = 0; base < pieces; base += dot::STAGES) {
                const bool last = base + dot::STAGES >= pieces;
#pragma unroll
                for (int s = 0; s < dot::STAGES; ++s) {
                    if (group < groups && base + s < pieces)
                        ring[s].multiply(sum, activations, part + (base + s) * split_k, w.columns);
                    load(s, last ? group + step : group, last ? s : base + dot::STAGES + s);
                }
            }
            float total = lanes(sum);
            if (split_k > 1) {
                sums[parity][warp][lane] = total;
                // The next round writes the other half, and the one after it comes after the next barrier.
                __syncthreads();
                if (finishing)
                    for (int i = 1; i < split_k; ++i) total += sums[parity][warp + i][lane];
            }
            const float other = __shfl_xor_sync(warp::ALL, total, PARTNER);
            if (real) finish.store(group * dot::ROWS + row, b, total, other, ahead);
        }
    }

    // Add up the lanes of a row: lane l gets the sum of value l % ROW_LANES, sequences innermost.
    __device__ static float lanes(const float (&sum)[dot::LOADS][BATCH]) {
        float flat[dot::LOADS * BATCH];
#pragma unroll
        for (int i = 0; i < dot::LOADS * BATCH; ++i) flat[i] = sum[i / BATCH][i % BATCH];
        return warp::scattered_sum<dot::ROW_LANES>(flat);
    }
};

}  // namespace matvec
