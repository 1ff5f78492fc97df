// What the host hands to the persistent kernel by value; Python's mirror is persistent/params.py.
//
// The names of params.h hold here too. S is the number of blocks. Memory that the kernel itself writes is read by
// other multiprocessors while it runs.
#pragma once

#include "params.h"

constexpr int PERSISTENT_COUNTERS = 6;  // persistent/schedule.py: Counter
constexpr int PERSISTENT_MATRICES = 4;

// The addresses of one layer.
struct PersistentLayer {
    const void *matrix[PERSISTENT_MATRICES];  // qkv, output, gate_up, down: packed
    const float *attention_norm, *ffn_norm;   // [hidden]
    const float *bias;                        // of qkv, or null
    void *pages;                              // of this layer's cache
};

struct PersistentParams {
    // The schedule.
    const int *rows;     // [rows][5]: persistent/schedule.py
    const int *offsets;  // [S + 1]: of each block's first row
    const PersistentLayer *layers;
    unsigned *counters;  // [PERSISTENT_COUNTERS][32]: the first of each 32 counts; 0 at the launch
    int per_token[PERSISTENT_COUNTERS];
    // Byte offsets into a block's shared memory: persistent/layout.py.
    int layers_at, barriers_at, activation_at, results_at, scratch_at, ring_at;
    int slot_bytes, slots;
    int result_tiles;  // that the results have room for

    const void *head;       // packed
    const void *embedding;  // packed
    const float *output_norm;
    const float *rope;
    const int *table;  // numbers of the sequence's pages, in order
    float *x;
    float *q;
    float *partial;
    float *partial_ml;
    float *h;
    float *logits;             // [vocabulary] of the last token, or null
    unsigned long long *best;  // [S]: every block's best row
    int *token;                // at the launch the token to begin with; at the end the last one handed out
    int *position;             // of that token; at the end of the last one
    int *count;                // ids handed out so far
    int *ring;                 // [ring_slots][ring_stride], as in NextParams
    int *status;               // [S][8], memory of the host: why a block gave up
    int ring_slots, ring_stride;
    int tokens;  // to hand out
    int layer_count, hidden, heads, kv_heads, inner, vocabulary, rope_dims, splits;
    int patience;  // polls after which a block gives up
    float epsilon;
};
