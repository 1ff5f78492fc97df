// What the host hands to the decode kernels by value, and the data that all kernels share.
//
// Python's mirror is engine/memory/params.py; a test holds sizes and offsets of the two together. Pointers are device
// addresses. Shapes are row-major, in elements. B is the number of sequences of a step (the compile-time BATCH),
// D the length of a head (the compile-time HEAD_DIM).
#pragma once

// A packed weight matrix; the layout is in weights/packing.py and packing.cuh. Its kind is the compile-time WEIGHT.
struct Matrix {
    const void *tiles;
    int rows;     // true rows; memory holds whole tiles of 16
    int columns;  // a multiple of 32
};

// Keys and values of one layer: [page][kv_head][K, V][64 tokens][D], elements of the compile-time KV type.
struct Cache {
    void *pages;
    const int *table;  // [slot][table_stride]: numbers of a sequence's pages, in order
    int table_stride;
    int kv_heads;
};

// qkv: x -> RMSNorm -> q, k, v = W x (+ bias) -> rotate q and k -> q to memory, k and v into the cache.
// Rows of W: q heads, k heads, v heads. The two rows of a rotated pair are neighbours in every architecture: weights
// are permuted when they are packed.
struct QkvParams {
    Matrix w;             // (heads + 2 kv_heads) D rows, hidden columns
    const float *x;       // [B][hidden]
    const float *norm;    // [hidden]
    const float *bias;    // [rows], or null
    const float *rope;    // [positions][rope_dims / 2][cos, sin]
    const int *position;  // [B]; below 0: this slot is empty, touch nothing of it
    float *q;             // [B][heads][D]
    Cache cache;
    float epsilon;
    int heads;
    int rope_dims;  // leading dimensions of a head that are rotated; the rest passes
    int split_k;       // warps of a block that share a row's columns: 1, 2, 4 or 8 (engine/decode/geometry.py)
};

// attention: one split of the positions 0..position of every head; scores scaled by 1 / sqrt(D).
struct AttentionParams {
    const float *q;      // [B][heads][D]
    Cache cache;
    const int *position;  // [B]
    float *partial;       // [B][heads][splits][D]: sum of exp(score - max) v
    float *partial_ml;    // [B][heads][splits][max, sum]; an empty split has max -inf, sum 0
    int heads;
    int splits;  // of the positions; whole pages each
};

// output: merge the splits, then x += W merged.
struct OutputParams {
    Matrix w;  // hidden rows, heads D columns
    const float *partial;
    const float *partial_ml;
    const int *position;  // [B]; below 0: x stays as it is
    float *x;             // [B][hidden]
    int heads;
    int splits;
    int split_k;
};

// gate_up: x -> RMSNorm -> h = silu(gate x) * (up x). Row 2i of W is gate's row i, row 2i + 1 is up's.
struct GateUpParams {
    Matrix w;  // 2 inner rows, hidden columns
    const float *x;
    const float *norm;
    const int *position;  // [B]
    float *h;             // [B][inner]
    float epsilon;
    int split_k;
};

// down: x += W h.
struct DownParams {
    Matrix w;  // hidden rows, inner columns
    const float *h;
    const int *position;  // [B]
    float *x;
    int split_k;
};

// head: x -> RMSNorm -> logits = W x; the largest one's row joins `best` by atomicMax.
struct HeadParams {
    Matrix w;                  // vocabulary rows, hidden columns
    const float *x;
    const float *norm;
    const int *position;       // [B]
    float *logits;             // [B][vocabulary], or null
    unsigned long long *best;  // [B]: ordered bits of the logit << 32 | 0xffffffff - row: ties go to the lowest row
    float epsilon;
    int split_k;
};

// begin: put a sequence into a slot, or take it out, without waiting for the device.
struct BeginParams {
    int *position;             // [B]; the slot's becomes `at`
    int *active;               // [B]; the slot's becomes 0, the others' -1: for a `head` and `next` of it alone
    int *count;                // [B]; the slot's becomes 0
    unsigned long long *best;  // [B]; the slot's becomes what stands for `token`
    int slot;
    int at;     // position of the last token that has been computed; -1: there is none, and without `next` the slot is
                // empty
    int token;  // chosen already, or -1: the head chooses
};

// next: turn `best` into the chosen id, hand it out, and begin the next step with its embedding.
struct NextParams {
    Matrix table;              // embedding: vocabulary rows, hidden columns
    const int *active;         // [B]; below 0: leave this slot alone. In a step the positions themselves
    unsigned long long *best;  // [B]; read, then set to 0
    int *token;                // [B]: the id
    int *position;             // [B]: + 1
    int *count;                // [B]: ids handed out so far, + 1
    int *ring;                 // [ring_slots][ring_stride], memory that the host reads while kernels run: id n of slot
                               // b is at [n % ring_slots][b]; the host sets an entry to -1 once it has taken the id
    float *x;                  // [B][hidden]
    int ring_slots;
    int ring_stride;  // at least B
};
