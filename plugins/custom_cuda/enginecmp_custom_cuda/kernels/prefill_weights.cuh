// 16 neighbouring weights of a packed matrix as floats, for any WEIGHT.
#pragma once
#include "kernel.h"
#include "packing.cuh"
#include "params.h"
#include "ptx.cuh"

namespace prefill {

// `column` is a multiple of 16, `row` below the padded rows.
__device__ inline void read_16(const Matrix &w, int row, int column, float (&value)[16]) {
    const packing::Chunk chunk(w, row / packing::TILE_ROWS, column / packing::CHUNK_COLUMNS);
    const int within = column % packing::CHUNK_COLUMNS;
    row %= packing::TILE_ROWS;
    const unsigned char *at = chunk.weights + row * chunk.row_bytes();
    if (WEIGHT == WEIGHT_F32) {
        const float4 *from = reinterpret_cast<const float4 *>(at + within * 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float4 four = from[i];
            value[4 * i] = four.x;
            value[4 * i + 1] = four.y;
            value[4 * i + 2] = four.z;
            value[4 * i + 3] = four.w;
        }
        return;
    }
    unsigned word[8];
    if (WEIGHT == WEIGHT_F16 || WEIGHT == WEIGHT_BF16) {
        const uint4 *from = reinterpret_cast<const uint4 *>(at + within * 2);
        const uint4 low = from[0], high = from[1];
        word[0] = low.x, word[1] = low.y, word[2] = low.z, word[3] = low.w;
        word[4] = high.x, word[5] = high.y, word[6] = high.z, word[7] = high.w;
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            const unsigned short bits = static_cast<unsigned short>(word[i / 2] >> 16 * (i % 2));
            value[i] = WEIGHT == WEIGHT_F16 ? ptx::half_to_float(bits) : ptx::bf16_to_float(bits);
        }
        return;
    }
    // Q4_0: bytes 0..15 have elements 0..15 in their low halves, 16..31 in their high ones.
    at += within / 32 * packing::BLOCK_BYTES + (WEIGHT == WEIGHT_Q4_0 ? 0 : within % 32);
    const uint4 four = *reinterpret_cast<const uint4 *>(at);
    word[0] = four.x, word[1] = four.y, word[2] = four.z, word[3] = four.w;
    const float scale = ptx::half_to_float(chunk.scales(row)[within / 32]);
    const int shift = WEIGHT == WEIGHT_Q4_0 && within % 32 ? 4 : 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        const unsigned byte = word[i / 4] >> 8 * (i % 4);
        const int whole = WEIGHT == WEIGHT_Q4_0 ? static_cast<int>(byte >> shift & 15) - 8
                                                : static_cast<signed char>(byte & 255);
        value[i] = static_cast<float>(whole) * scale;
    }
}

}  // namespace prefill
