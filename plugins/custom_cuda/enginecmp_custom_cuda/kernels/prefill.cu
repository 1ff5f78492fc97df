// The small kernels of the prefill: embed, norm_* and quantize_* (what a GEMM reads), reduce (splits of a GEMM).
// WEIGHT is the embedding's kind.
#include "kernel.h"
#include "norm.cuh"
#include "prefill_finish.cuh"
#include "prefill_weights.cuh"
#include "ptx.cuh"
#include "quantize.cuh"
#include "warp.cuh"

namespace prefill {

constexpr int THREADS = 128, WARPS = THREADS / 32;

enum class To { FLOAT, HALF, BF16, INT8 };

// 8 neighbouring values of a row; `active` is false beyond its end, but every lane of a warp must come here.
template <To TO>
__device__ inline void emit(const RowsParams &p, int token, int column, bool active, const float (&value)[8]) {
    const long long at = static_cast<long long>(token) * p.columns + column;
    if (TO == To::FLOAT) {
        if (!active) return;
        float *to = static_cast<float *>(p.out) + at;
        store4(to, value[0], value[1], value[2], value[3]);
        store4(to + 4, value[4], value[5], value[6], value[7]);
    } else if (TO == To::INT8) {
        float largest = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(value[i]));
        const quantize::Scale scale(warp::largest<4>(largest));  // 4 lanes have a block of 32
        const unsigned low = quantize::pack4(make_float4(value[0], value[1], value[2], value[3]), scale.factor);
        const unsigned high = quantize::pack4(make_float4(value[4], value[5], value[6], value[7]), scale.factor);
        if (!active) return;
        *reinterpret_cast<uint2 *>(static_cast<char *>(p.out) + at) = make_uint2(low, high);
        if (column % 32 == 0) p.scale[static_cast<long long>(column / 32) * p.scale_stride + token] = scale.scale;
    } else {
        if (!active) return;
        unsigned word[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float low = value[2 * i], high = value[2 * i + 1];
            word[i] = TO == To::HALF ? ptx::float2_to_half2(low, high) : ptx::float2_to_bf162(low, high);
        }
        unsigned short *to = static_cast<unsigned short *>(p.out) + at;
        *reinterpret_cast<uint4 *>(to) = make_uint4(word[0], word[1], word[2], word[3]);
    }
}

__device__ inline void read8(float (&value)[8], const float *from) {
    const float4 low = *reinterpret_cast<const float4 *>(from), high = *reinterpret_cast<const float4 *>(from + 4);
    value[0] = low.x, value[1] = low.y, value[2] = low.z, value[3] = low.w;
    value[4] = high.x, value[5] = high.y, value[6] = high.z, value[7] = high.w;
}

template <To TO> __device__ inline void quantize_row(const RowsParams &p, int token) {
    const float *x = p.x + static_cast<long long>(token) * p.columns;
    for (int base = 0; base < p.columns; base += THREADS * 8) {
        const int column = base + threadIdx.x * 8;
        const bool active = column < p.columns;
        float value[8] = {};
        if (active) read8(value, x + column);
        emit<TO>(p, token, column, active, value);
    }
}

// x * rsqrt(mean(x^2) + epsilon) * norm
template <To TO> __device__ inline void norm_row(const RowsParams &p, int token, float *sums) {
    const float *x = p.x + static_cast<long long>(token) * p.columns;
    float sum = 0.0f;
    for (int column = threadIdx.x * 8; column < p.columns; column += THREADS * 8) {
        float value[8];
        read8(value, x + column);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = fmaf(value[i], value[i], sum);
    }
    sum = warp::sum(sum);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS; ++i) sum += sums[i];
    const float inverse = rms_norm::inverse_rms(sum, p.columns, p.epsilon);
    for (int base = 0; base < p.columns; base += THREADS * 8) {
        const int column = base + threadIdx.x * 8;
        const bool active = column < p.columns;
        float value[8] = {};
        if (active) {
            float weight[8];
            read8(value, x + column);
            read8(weight, p.norm + column);
#pragma unroll
            for (int i = 0; i < 8; ++i) value[i] = value[i] * inverse * weight[i];
        }
        emit<TO>(p, token, column, active, value);
    }
}

}  // namespace prefill

// Grid: T.
KERNEL(128, 8, embed, EmbedParams) {
    const int token = blockIdx.x;
    const bool empty = p.position[token] < 0;
    float *x = p.x + static_cast<long long>(token) * p.table.columns;
    for (int column = threadIdx.x * 16; column < p.table.columns; column += prefill::THREADS * 16) {
        float value[16] = {};
        if (!empty) prefill::read_16(p.table, p.ids[token], column, value);
#pragma unroll
        for (int i = 0; i < 16; i += 4)
            prefill::store4(x + column + i, value[i], value[i + 1], value[i + 2], value[i + 3]);
    }
}

KERNEL(128, 8, norm_f32, RowsParams) {
    __shared__ float sums[prefill::WARPS];
    prefill::norm_row<prefill::To::FLOAT>(p, blockIdx.x, sums);
}

KERNEL(128, 8, norm_f16, RowsParams) {
    __shared__ float sums[prefill::WARPS];
    prefill::norm_row<prefill::To::HALF>(p, blockIdx.x, sums);
}

KERNEL(128, 8, norm_bf16, RowsParams) {
    __shared__ float sums[prefill::WARPS];
    prefill::norm_row<prefill::To::BF16>(p, blockIdx.x, sums);
}

KERNEL(128, 8, norm_s8, RowsParams) {
    __shared__ float sums[prefill::WARPS];
    prefill::norm_row<prefill::To::INT8>(p, blockIdx.x, sums);
}

KERNEL(128, 8, quantize_f16, RowsParams) { prefill::quantize_row<prefill::To::HALF>(p, blockIdx.x); }

KERNEL(128, 8, quantize_bf16, RowsParams) { prefill::quantize_row<prefill::To::BF16>(p, blockIdx.x); }

KERNEL(128, 8, quantize_s8, RowsParams) { prefill::quantize_row<prefill::To::INT8>(p, blockIdx.x); }

// Grid: ceil(T * padded rows / 8 / 128).
KERNEL(128, 8, reduce, ReduceParams) {
    const int rows = prefill::padded_rows(p.finish.rows);
    const int item = blockIdx.x * prefill::THREADS + threadIdx.x;
    const int token = item / (rows / 8), row = item % (rows / 8) * 8;
    if (token >= p.finish.tokens) return;
    float value[8] = {};
    for (int split = 0; split < p.splits; ++split) {
        float part[8];
        prefill::read8(part, p.partial + (static_cast<long long>(split) * p.finish.tokens + token) * rows + row);
#pragma unroll
        for (int i = 0; i < 8; ++i) value[i] += part[i];
    }
    prefill::finish(p.finish, token, row, value);
}
