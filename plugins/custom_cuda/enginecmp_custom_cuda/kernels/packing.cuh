// Where things are in a packed matrix; weights/packing.py holds the same formulas.
//
// Rows in tiles of 16, columns in chunks of 512 (a row's last one may be narrower). Memory: tiles in order, in a tile
// its chunks, in a chunk 16 rows of weights one after the other, then for Q8_0 and Q4_0 the fp16 scales,
// [16][chunk columns / 32].
#pragma once
#include "kernel.h"
#include "params.h"
#include "ptx.cuh"

#define WEIGHT_F32 0
#define WEIGHT_F16 1
#define WEIGHT_BF16 2
#define WEIGHT_Q8_0 3
#define WEIGHT_Q4_0 4

namespace packing {

constexpr int TILE_ROWS = 16, CHUNK_COLUMNS = 512, BLOCK = 32;
constexpr bool SCALED = WEIGHT == WEIGHT_Q8_0 || WEIGHT == WEIGHT_Q4_0;
// Of 32 weights, their scale apart.
constexpr int BLOCK_BYTES = WEIGHT == WEIGHT_F32 ? 128 : WEIGHT == WEIGHT_Q8_0 ? 32 : WEIGHT == WEIGHT_Q4_0 ? 16 : 64;
constexpr int SCALE_BYTES = SCALED ? 2 : 0;

// Bytes of 16 packed rows.
__device__ inline long long tile_bytes(int columns) {
    return static_cast<long long>(columns / BLOCK) * (TILE_ROWS * (BLOCK_BYTES + SCALE_BYTES));
}

// One chunk of one tile.
struct Chunk {
    const unsigned char *weights;
    int columns;

    __device__ Chunk(const Matrix &w, int tile, int chunk)
        : weights(static_cast<const unsigned char *>(w.tiles) + tile * tile_bytes(w.columns) +
                  chunk * tile_bytes(CHUNK_COLUMNS)),
          columns(min(CHUNK_COLUMNS, w.columns - chunk * CHUNK_COLUMNS)) {}

    __device__ int row_bytes() const { return columns / BLOCK * BLOCK_BYTES; }

    // The scales of a row, one for each 32 columns.
    __device__ const unsigned short *scales(int row) const {
        return reinterpret_cast<const unsigned short *>(weights + TILE_ROWS * row_bytes()) + row * (columns / BLOCK);
    }
};

// One weight as a number: for the few that are looked up, not multiplied.
__device__ inline float weight_at(const Matrix &w, int row, int column) {
    const Chunk chunk(w, row / TILE_ROWS, column / CHUNK_COLUMNS);
    const int within = column % CHUNK_COLUMNS, block = within / BLOCK, place = within % BLOCK;
    const unsigned char *at = chunk.weights + row % TILE_ROWS * chunk.row_bytes() + block * BLOCK_BYTES;
    if (WEIGHT == WEIGHT_F32) return reinterpret_cast<const float *>(at)[place];
    if (WEIGHT == WEIGHT_F16) return ptx::half_to_float(reinterpret_cast<const unsigned short *>(at)[place]);
    if (WEIGHT == WEIGHT_BF16) return ptx::bf16_to_float(reinterpret_cast<const unsigned short *>(at)[place]);
    const float scale = ptx::half_to_float(chunk.scales(row % TILE_ROWS)[block]);
    if (WEIGHT == WEIGHT_Q8_0) return scale * static_cast<float>(static_cast<signed char>(at[place]));
    // Q4_0: the low halves of the 16 bytes are the first 16 weights.
    return scale * static_cast<float>((at[place % 16] >> (place / 16 * 4) & 15) - 8);
}

}  // namespace packing
