// Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34) of neighbouring rows (2i, 2i + 1).
#pragma once
#include "kernel.h"

namespace rope {

// Where the table [positions][rope_dims / 2][cos, sin] has the angle of dimension d (even, below rope_dims).
__device__ inline const float *angle(const float *table, int position, int rope_dims, int d) {
    return table + static_cast<long long>(position) * rope_dims + d;
}

// One row of a pair: `own` is its value, `other` its partner's, `odd` tells which of the two it is.
__device__ inline float rotated(float own, float other, bool odd, float cosine, float sine) {
    return odd ? fmaf(own, cosine, other * sine) : fmaf(own, cosine, -other * sine);
}

}  // namespace rope
