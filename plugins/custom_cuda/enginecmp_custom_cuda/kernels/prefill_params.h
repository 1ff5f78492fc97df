// What the host hands to the prefill kernels by value. Python's mirror is engine/prefill/params.py.
//
// T is the number of tokens of a call; they may belong to several sequences. position[t] is token t's place in its
// sequence (below 0: the token is empty, nothing of it is written to the cache), slot[t] its sequence's row of the
// block table. Tokens of one sequence are neighbours in ascending order.
#pragma once
#include "params.h"

// embed: x = rows of the table; an empty token's row is zero.
struct EmbedParams {
    Matrix table;         // vocabulary rows, hidden columns
    const int *ids;       // [T]
    const int *position;  // [T]
    float *x;             // [T][hidden]
};

// norm_*, quantize_*: one row of x a block -> what a GEMM reads.
struct RowsParams {
    const float *x;     // [T][columns]
    const float *norm;  // [columns]; quantize_* do not read it
    void *out;          // [T][columns]: float, half, bf16 or int8, by the kernel's name
    float *scale;       // [columns / 32][scale_stride], int8 only
    float epsilon;
    int columns;
    int scale_stride;  // at least T, a multiple of 4
};

// What becomes of a product, by kind:
enum FinishKind {
    FINISH_STORE = 0,   // out[t][row] = value
    FINISH_ADD = 1,     // out[t][row] += value
    FINISH_SWIGLU = 2,  // out[t][row / 2] = silu(value of row) * value of row + 1
    FINISH_QKV = 3,     // add the bias, rotate; q to out, k and v into the cache
};

struct Finish {
    float *out;           // STORE, ADD: [T][rows]; SWIGLU: [T][rows / 2]; QKV: [T][heads][D]
    const float *bias;    // QKV: [rows], or null
    const float *rope;    // QKV: [positions][rope_dims / 2][cos, sin]
    const int *position;  // QKV: [T]
    const int *slot;      // QKV: [T]
    Cache cache;          // QKV
    int heads;            // QKV
    int rope_dims;        // QKV
    int kind;
    int tokens;  // T
    int rows;    // of the product
};

// gemm_*: value[t][row] = sum over columns of W[row] a[t]. Grid: (tiles of tokens, tiles of rows, splits).
struct GemmParams {
    Matrix w;
    const void *a;         // [T][columns]: int8, half or bf16 for gemm_mma.cu, float for gemm_f32.cu
    const float *a_scale;  // [columns / 32][scale_stride]; int8 only
    float *partial;        // splits > 1: [splits][T][rows rounded up to 8], for `reduce`; no finish then
    Finish finish;
    int scale_stride;
    int splits;  // of the columns
};

// reduce: adds the splits in order, then finishes. One thread a token and 8 rows.
struct ReduceParams {
    const float *partial;
    Finish finish;
    int splits;
};

// flash_*: causal attention of the T tokens over their sequences' caches, positions 0..position[t].
// Grid: (ceil(T / tile_tokens), kv_heads, ceil(group / R)), group = heads / kv_heads, R the query rows of a block (64
// in flash_f16, 16 in flash_f32); tile_tokens is at most R / group, and 1 where that is less.
struct FlashParams {
    const float *q;       // [T][heads][D]
    Cache cache;
    const int *position;  // [T]
    const int *slot;      // [T]
    float *out;           // [T][heads][D]; an empty token's row is zero
    int tokens;
    int tile_tokens;
    int heads;
};

// attention_split, attention_merge: what flash_* computes, for few tokens.
struct SplitParams {
    const float *q;       // [T][heads][D]
    Cache cache;
    const int *position;  // [T]
    const int *slot;      // [T]
    float *out;           // [T][heads][D]; an empty token's row is zero
    float *partial;       // [T][heads][splits][D]
    float *partial_ml;    // [T][heads][splits][largest score, sum of weights]
    int tokens;
    int heads;
    int splits;  // most of a token
};
