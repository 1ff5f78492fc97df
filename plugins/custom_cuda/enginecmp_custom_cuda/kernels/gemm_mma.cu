// Tensor-core GEMMs of the prefill, for one WEIGHT kind: Q8_0 and Q4_0 times int8, F16 times half, BF16 times bf16.
//
// Three shapes of tile: `large` for prompts, `medium` up to 64 tokens, `small` up to 16. Grid: (tiles of tokens, tiles
// of rows, splits). Shared memory: STAGES * STAGE_BYTES of the shape; engine/prefill/gemm.py computes the same.
#include "gemm_mma.cuh"

//                              warps: rows, tokens, k; tiles of 8 tokens a warp; groups a stage; stages
using Large = gemm::Shape<2, 4, 1, 4, 2, 3>;   // 128 rows, 128 tokens
using Medium = gemm::Shape<1, 2, 2, 4, 4, 3>;  // 64 rows, 64 tokens
using Small = gemm::Shape<1, 1, 4, 2, 4, 4>;   // 64 rows, 16 tokens

KERNEL(256, 2, gemm_large, GemmParams) {
    DYNAMIC_SHARED(char, shared);
    gemm::run<Large>(p, shared);
}

KERNEL(128, 3, gemm_medium, GemmParams) {
    DYNAMIC_SHARED(char, shared);
    gemm::run<Medium>(p, shared);
}

KERNEL(128, 4, gemm_small, GemmParams) {
    DYNAMIC_SHARED(char, shared);
    gemm::run<Small>(p, shared);
}
