// Activations as int8 with one float32 scale for 32: what dp4a and the integer mma multiply.
#pragma once
#include "kernel.h"
#include "warp.cuh"

#define ACTIVATION_Q8 0
#define ACTIVATION_F32 1

namespace quantize {

constexpr int BLOCK = 32;

// scale = largest / 127; a value is rint(x * (127 / largest)).
struct Scale {
    float factor, scale;
    __device__ explicit Scale(float largest)
        : factor(largest > 0.0f ? 127.0f / largest : 0.0f), scale(largest / 127.0f) {}
};

__device__ inline unsigned rounded(float x, float factor) {
    return static_cast<unsigned>(__float2int_rn(x * factor)) & 0xffu;
}

// Four int8 in a word, the first in the lowest byte.
__device__ inline unsigned pack4(float4 x, float factor) {
    return rounded(x.x, factor) | rounded(x.y, factor) << 8 | rounded(x.z, factor) << 16 | rounded(x.w, factor) << 24;
}

__device__ inline float largest4(float4 x) {
    return fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w)));
}

// The largest of a block of 32, of which 8 neighbouring lanes bring 4 values each. All lanes of the warp call it.
__device__ inline float block_largest(float4 x) { return warp::largest<8>(largest4(x)); }

}  // namespace quantize
