// A packed matrix as plain rows of 16-bit numbers, for a library's GEMM.
#include "expand_params.h"
#include "kernel.h"
#include "prefill_weights.cuh"
#include "ptx.cuh"

namespace expand {

constexpr int THREADS = 128;

template <bool HALF> __device__ inline void columns_16(const ExpandParams &p) {
    const long long item = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
    const int pieces = p.w.columns / 16;
    const int row = static_cast<int>(item / pieces), column = static_cast<int>(item % pieces) * 16;
    if (row >= p.w.rows) return;
    float value[16];
    prefill::read_16(p.w, row, column, value);
    unsigned word[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const unsigned low = HALF ? ptx::float_to_half(value[2 * i]) : ptx::float_to_bf16(value[2 * i]);
        const unsigned high = HALF ? ptx::float_to_half(value[2 * i + 1]) : ptx::float_to_bf16(value[2 * i + 1]);
        word[i] = low | high << 16;
    }
    uint4 *to = reinterpret_cast<uint4 *>(p.out + static_cast<long long>(row) * p.w.columns + column);
    to[0] = make_uint4(word[0], word[1], word[2], word[3]);
    to[1] = make_uint4(word[4], word[5], word[6], word[7]);
}

}  // namespace expand

// Grid: ceil(rows * columns / 16 / 128).
KERNEL(128, 8, expand_f16, ExpandParams) { expand::columns_16<true>(p); }

KERNEL(128, 8, expand_bf16, ExpandParams) { expand::columns_16<false>(p); }
