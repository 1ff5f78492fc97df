// What becomes of a product's values: stored, added to the residual, gated, or rotated and handed out as q, k and v.
//
// A thread brings 8 neighbouring rows of one token at a time, so that pairs never leave it and stores are wide.
#pragma once
#include "kernel.h"
#include "kv.cuh"
#include "prefill_params.h"
#include "rope.cuh"

namespace prefill {

constexpr int FINISH_ROWS = 8;  // a thread's neighbouring rows

__device__ inline int padded_rows(int rows) { return (rows + FINISH_ROWS - 1) / FINISH_ROWS * FINISH_ROWS; }

__device__ inline void store4(float *to, float a, float b, float c, float d) {
    *reinterpret_cast<float4 *>(to) = make_float4(a, b, c, d);
}

// out[0..7] = value (or += value) for the rows below p.rows. Wide where the rows keep 16 bytes together.
template <bool ADD> __device__ inline void finish_rows(const Finish &p, int token, int row, const float (&value)[8]) {
    float *to = p.out + static_cast<long long>(token) * p.rows + row;
    if (p.rows % 4 == 0 && row + 8 <= p.rows) {
        float4 *wide = reinterpret_cast<float4 *>(to);
        float4 low = make_float4(value[0], value[1], value[2], value[3]);
        float4 high = make_float4(value[4], value[5], value[6], value[7]);
        if (ADD) {
            const float4 x = wide[0], y = wide[1];
            low = make_float4(x.x + low.x, x.y + low.y, x.z + low.z, x.w + low.w);
            high = make_float4(y.x + high.x, y.y + high.y, y.z + high.z, y.w + high.w);
        }
        wide[0] = low;
        wide[1] = high;
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i)
        if (row + i < p.rows) to[i] = ADD ? to[i] + value[i] : value[i];
}

__device__ inline float silu(float x) { return x / (1.0f + expf(-x)); }

__device__ inline void finish_swiglu(const Finish &p, int token, int row, const float (&value)[8]) {
    const int inner = p.rows / 2;
    float *to = p.out + static_cast<long long>(token) * inner + row / 2;
    float h[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) h[i] = silu(value[2 * i]) * value[2 * i + 1];
    if (inner % 4 == 0) {  // then rows are whole eights
        store4(to, h[0], h[1], h[2], h[3]);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (row + 2 * i < p.rows) to[i] = h[i];
}

// Rows are whole heads, and a head is a multiple of 8 rows: the 8 values are of one head.
__device__ inline void finish_qkv(const Finish &p, int token, int row, const float (&given)[8]) {
    static_assert(HEAD_DIM % FINISH_ROWS == 0, "8 rows must lie in one head");
    const int position = p.position[token];
    if (row >= p.rows || position < 0) return;
    const int head = row / HEAD_DIM, d = row % HEAD_DIM;
    float value[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i] = given[i];
    if (p.bias) {
#pragma unroll
        for (int i = 0; i < 8; ++i) value[i] += p.bias[row + i];
    }
    const int kv_heads = p.cache.kv_heads;
    if (head < p.heads + kv_heads) {  // v is not rotated
        const float *angle = rope::angle(p.rope, position, p.rope_dims, d);
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            if (d + i < p.rope_dims) {
                const float cosine = angle[i], sine = angle[i + 1], even = value[i], odd = value[i + 1];
                value[i] = rope::rotated(even, odd, false, cosine, sine);
                value[i + 1] = rope::rotated(odd, even, true, cosine, sine);
            }
        }
    }
    if (head < p.heads) {
        float *to = p.out + (static_cast<long long>(token) * p.heads + head) * HEAD_DIM + d;
        store4(to, value[0], value[1], value[2], value[3]);
        store4(to + 4, value[4], value[5], value[6], value[7]);
        return;
    }
    const int kv_head = (head - p.heads) % kv_heads, which = head < p.heads + kv_heads ? kv::KEY : kv::VALUE;
    store_kv(p.cache, p.slot[token], position, kv_head, which, d, value);
}

// Finish 8 rows of a token; `row` is a multiple of 8 and may lie beyond the last.
__device__ inline void finish(const Finish &p, int token, int row, const float (&value)[8]) {
    if (token >= p.tokens || row >= p.rows) return;
    switch (p.kind) {
        case FINISH_STORE: finish_rows<false>(p, token, row, value); break;
        case FINISH_ADD: finish_rows<true>(p, token, row, value); break;
        case FINISH_SWIGLU: finish_swiglu(p, token, row, value); break;
        default: finish_qkv(p, token, row, value);
    }
}

// The sums of one split of the columns, for `reduce`.
__device__ inline void store_partial(float *partial, int split, const Finish &p, int token, int row,
                                     const float (&value)[8]) {
    if (token >= p.tokens || row >= p.rows) return;
    float *to = partial + (static_cast<long long>(split) * p.tokens + token) * padded_rows(p.rows) + row;
    store4(to, value[0], value[1], value[2], value[3]);
    store4(to + 4, value[4], value[5], value[6], value[7]);
}

}  // namespace prefill
