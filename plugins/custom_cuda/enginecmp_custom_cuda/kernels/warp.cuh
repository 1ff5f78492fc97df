// Sums and maxima across a warp's lanes. Every lane of the warp must call them.
#pragma once
#include "kernel.h"

namespace warp {

constexpr unsigned ALL = 0xffffffffu;

// The sum over neighbouring groups of SPAN lanes, in every one of them.
template <int SPAN = 32> __device__ inline float sum(float x) {
#pragma unroll
    for (int step = SPAN / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL, x, step);
    return x;
}

template <int SPAN = 32> __device__ inline float largest(float x) {
#pragma unroll
    for (int step = SPAN / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, step));
    return x;
}

// One halving: afterwards a lane carries the upper HALF values or the lower ones, summed over the lanes that differ in
// bit HALF. A template, because a loop's shrinking arrays would end in local memory.
template <int HALF, int N> __device__ inline void halve(float (&value)[N]) {
    if constexpr (HALF > 0) {
        const bool upper = threadIdx.x & HALF;
#pragma unroll
        for (int i = 0; i < HALF; ++i) {
            const float kept = upper ? value[i + HALF] : value[i];
            const float given = upper ? value[i] : value[i + HALF];
            value[i] = kept + __shfl_xor_sync(ALL, given, HALF);
        }
        halve<HALF / 2>(value);
    }
}

// N sums at once, each over SPAN lanes: lane l gets the sum of value[l % N]. N and SPAN are powers of two, N <= SPAN.
// N - 1 + log2(SPAN / N) shuffles.
template <int SPAN, int N> __device__ inline float scattered_sum(float (&value)[N]) {
    static_assert(N <= SPAN && (N & (N - 1)) == 0, "a power of two, at most one value a lane");
    halve<N / 2>(value);
    float total = value[0];
#pragma unroll
    for (int step = N; step < SPAN; step *= 2) total += __shfl_xor_sync(ALL, total, step);
    return total;
}

}  // namespace warp
