// What becomes of a row's sum.
//
// The formulas are decode.cu's, in the same order, so that both compute the same bits.
#pragma once
#include "kernel.h"
#include "kv.cuh"
#include "persistent_params.h"
#include "persistent_wait.cuh"
#include "rope.cuh"

namespace persistent {

// Sums of rows as the teams left them: [tile][TEAMS][16]. The order of the teams does not matter to the sum of two.
__device__ inline float sum_of(const float *results, int row) {
    const float *const tile = results + row / packing::TILE_ROWS * (TEAMS * packing::TILE_ROWS) + row % packing::TILE_ROWS;
    float total = 0.0f;
#pragma unroll
    for (int team = 0; team < TEAMS; ++team) total += tile[team * packing::TILE_ROWS];
    return total;
}

// A row of q, k or v: `sum` is its own, `other` the one of its rotated pair, both before the norm's `inverse`.
__device__ inline void finish_qkv(const PersistentParams &p, const PersistentLayer &layer, int position, float inverse,
                                  int row, float sum, float other) {
    const int head = row / HEAD_DIM, d = row % HEAD_DIM;
    float cosine = 1.0f, sine = 0.0f;
    if (d < p.rope_dims && head < p.heads + p.kv_heads) {
        const float *const angle = rope::angle(p.rope, position, p.rope_dims, d / 2 * 2);
        cosine = angle[0], sine = angle[1];
    }
    const float own = fmaf(sum, inverse, layer.bias ? layer.bias[row] : 0.0f);
    const float partner = fmaf(other, inverse, layer.bias ? layer.bias[row ^ 1] : 0.0f);
    const float value = rope::rotated(own, partner, row & 1, cosine, sine);
    if (head < p.heads) {
        p.q[row] = value;
        return;
    }
    const Cache cache = {layer.pages, p.table, 0, p.kv_heads};
    const int kv_head = (head - p.heads) % p.kv_heads, which = (head - p.heads) / p.kv_heads;
    kv::at(cache, 0, position, kv_head, which)[d] = kv::Element<KV>::from(value);
}

__device__ inline void finish_gate_up(float *h, float inverse, int row, float sum, float other) {
    if (row & 1) return;
    const float gate = sum * inverse, up = other * inverse;
    h[row / 2] = gate / (1.0f + expf(-gate)) * up;
}

// Larger keys are larger logits; of equal ones, lower rows.
__device__ inline unsigned long long key_of(int row, float logit) {
    // Bits in the order of the numbers; adding 0 makes the two zeros one.
    unsigned bits = __float_as_uint(logit + 0.0f);
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
    return static_cast<unsigned long long>(bits) << 32 | (0xffffffffu - row);
}

// The largest key of the warp, in every lane.
__device__ inline unsigned long long largest_key(unsigned long long key) {
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) key = max(key, __shfl_xor_sync(warp::ALL, key, lanes));
    return key;
}

}  // namespace persistent
