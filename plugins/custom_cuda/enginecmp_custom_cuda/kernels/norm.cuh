// RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4): x / sqrt(mean(x^2) + epsilon) * weight.
#pragma once
#include "kernel.h"

namespace rms_norm {

__device__ inline float square4(float4 x) { return fmaf(x.x, x.x, fmaf(x.y, x.y, fmaf(x.z, x.z, x.w * x.w))); }

__device__ inline float inverse_rms(float sum_of_squares, int columns, float epsilon) {
    return 1.0f / sqrtf(sum_of_squares / static_cast<float>(columns) + epsilon);
}

}  // namespace rms_norm
