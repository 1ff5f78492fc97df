// What one warp does with 4 rows of a packed matrix and a slab of its columns: load, then multiply with activations.
//
// A slab is what 32 lanes (16 for Q4_0, whose other 16 take other rows) cover with one 16-byte load of a row each:
// 512 columns of Q8_0 and Q4_0, 256 of F16 and BF16, 128 of F32. A slab lies in one chunk. All its loads are issued
// before the first is used, and the next slabs' before this one is multiplied.
#pragma once
#include "kernel.h"
#include "packing.cuh"
#include "params.h"
#include "ptx.cuh"
#include "quantize.cuh"

namespace dot {

constexpr bool Q8 = ACTIVATION == ACTIVATION_Q8;
static_assert(!Q8 || packing::SCALED, "int8 activations need integer weights");

constexpr int ROWS = 4;                                      // of a warp
constexpr int ROW_LANES = WEIGHT == WEIGHT_Q4_0 ? 16 : 32;   // that share a row
constexpr int ELEMENTS = 16 * packing::BLOCK / packing::BLOCK_BYTES;  // of a 16-byte load
constexpr int SLAB = ROW_LANES * ELEMENTS;
constexpr int LOADS = ROWS * ROW_LANES / 32;                 // 16-byte loads, and so rows, of a lane
// Slabs that a warp has in flight; the sums of 8 sequences leave registers for no more than 2.
constexpr int STAGES = WEIGHT == WEIGHT_Q4_0 && BATCH < 8 ? 4 : 2;

__device__ inline int slabs(int columns) { return (columns + SLAB - 1) / SLAB; }

// Which of the 4 rows a lane's load i is of.
__device__ inline int row_of(int i, int lane) { return i * (32 / ROW_LANES) + lane / ROW_LANES; }

// The activations in shared memory, [BATCH][slabs][SLAB], int8 or float, then for int8 the scales,
// [BATCH][columns / 32]. In a slab the 16-byte vectors are dealt so that neighbouring lanes read neighbouring vectors.
struct Activations {
    static constexpr int BYTES = Q8 ? 1 : 4;                   // of an element
    static constexpr int VECTORS = ELEMENTS * BYTES / 16;      // that a lane reads of a slab
    static constexpr int SLAB_VECTORS = VECTORS * ROW_LANES;

    uint4 *memory;
    float *scales;
    int blocks, stride;  // of a sequence: scales, vectors

    __device__ Activations(uint4 *memory_, int columns)
        : memory(memory_), scales(reinterpret_cast<float *>(memory_ + BATCH * slabs(columns) * SLAB_VECTORS)),
          blocks(columns / packing::BLOCK), stride(slabs(columns) * SLAB_VECTORS) {}

    __device__ uint4 *vector(int b, int index) const {
        const int slab = index / SLAB_VECTORS, within = index % SLAB_VECTORS;
        return memory + b * stride + slab * SLAB_VECTORS + within % VECTORS * ROW_LANES + within / VECTORS;
    }

    // The columns 4 i to 4 i + 3 of sequence b; `real` tells whether there are such. All lanes of a warp call it.
    __device__ void store(int b, int i, float4 x, bool real) const {
        if (Q8) {
            const quantize::Scale scale(quantize::block_largest(x));
            if (!real) return;
            reinterpret_cast<unsigned *>(vector(b, i / 4))[i % 4] = quantize::pack4(x, scale.factor);
            if (i % 8 == 0) scales[b * blocks + i / 8] = scale.scale;
        } else if (real) {
            *reinterpret_cast<float4 *>(vector(b, i)) = x;
        }
    }

    __device__ uint4 load(int b, int slab, int i, int lane) const {
        return memory[b * stride + slab * SLAB_VECTORS + i * ROW_LANES + lane % ROW_LANES];
    }
};

// A lane's part of 4 rows and a slab.
struct Piece {
    unsigned word[LOADS][4];
    unsigned short scale[LOADS];

    // Rows 4 group to 4 group + 3. Lanes beyond the last column load nothing.
    __device__ void load(const Matrix &w, int group, int slab) {
        const int lane = threadIdx.x % 32, column = slab * SLAB + lane % ROW_LANES * ELEMENTS;
        if (column >= w.columns) return;
        const int row = group * ROWS, within = column % packing::CHUNK_COLUMNS;
        const packing::Chunk chunk(w, row / packing::TILE_ROWS, slab * SLAB / packing::CHUNK_COLUMNS);
        const unsigned char *at = chunk.weights + within / ELEMENTS * 16;
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            const int tile_row = row % packing::TILE_ROWS + row_of(i, lane);
            const uint4 bits = ptx::load_stream(reinterpret_cast<const uint4 *>(at + tile_row * chunk.row_bytes()));
            word[i][0] = bits.x, word[i][1] = bits.y, word[i][2] = bits.z, word[i][3] = bits.w;
        }
        if (packing::SCALED) {
            const unsigned short *scales = chunk.scales(row % packing::TILE_ROWS) + within / packing::BLOCK;
            const int blocks = chunk.columns / packing::BLOCK;
#pragma unroll
            for (int i = 0; i < LOADS; ++i) scale[i] = scales[row_of(i, lane) * blocks];
        }
    }

    // sum[i][b] += row i's part times sequence b's activations.
    __device__ void multiply(float (&sum)[LOADS][BATCH], const Activations &activations, int slab, int columns) const {
        const int lane = threadIdx.x % 32, column = slab * SLAB + lane % ROW_LANES * ELEMENTS;
        if (column >= columns) return;
        float scales[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; ++i) scales[i] = packing::SCALED ? ptx::half_to_float(scale[i]) : 1.0f;
        if (Q8)
            multiply_q8(sum, activations, slab, column, lane, scales);
        else
            multiply_f32(sum, activations, slab, lane, scales);
    }

  private:
    __device__ void multiply_q8(float (&sum)[LOADS][BATCH], const Activations &activations, int slab, int column,
                                int lane, const float (&scales)[LOADS]) const {
#pragma unroll
        for (int b = 0; b < BATCH; ++b) {
            unsigned x[Activations::VECTORS * 4 > 0 ? Activations::VECTORS * 4 : 1];
#pragma unroll
            for (int i = 0; i < Activations::VECTORS; ++i) {
                const uint4 bits = activations.load(b, slab, i, lane);
                x[4 * i] = bits.x, x[4 * i + 1] = bits.y, x[4 * i + 2] = bits.z, x[4 * i + 3] = bits.w;
            }
            const float x_scale = activations.scales[b * activations.blocks + column / packing::BLOCK];
            int offset = 0;
            if (WEIGHT == WEIGHT_Q4_0) {  // stored weights are 8 more than meant
#pragma unroll
                for (int j = 0; j < Activations::VECTORS * 4; ++j) offset = ptx::dp4a(0x01010101u, x[j], offset);
            }
#pragma unroll
            for (int i = 0; i < LOADS; ++i) {
                int whole = -8 * offset;
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    if (WEIGHT == WEIGHT_Q4_0) {
                        const unsigned high = x[(4 + j) % (Activations::VECTORS * 4)];
                        whole = ptx::dp4a(word[i][j] & 0x0f0f0f0fu, x[j], whole);
                        whole = ptx::dp4a(word[i][j] >> 4 & 0x0f0f0f0fu, high, whole);
                    } else {
                        whole = ptx::dp4a(word[i][j], x[j], whole);
                    }
                }
                sum[i][b] = fmaf(static_cast<float>(whole), scales[i] * x_scale, sum[i][b]);
            }
        }
    }

    // Four weights of load i as numbers: those that meet the lane's q-th four activations.
    __device__ void four(int i, int q, float scale, float (&out)[4]) const {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (WEIGHT == WEIGHT_F32) {
                out[j] = __uint_as_float(word[i][j]);
            } else if (WEIGHT == WEIGHT_F16 || WEIGHT == WEIGHT_BF16) {
                const unsigned bits = word[i][(2 * q + j / 2) % 4] >> (j % 2 * 16) & 0xffffu;
                const unsigned short half = static_cast<unsigned short>(bits);
                out[j] = WEIGHT == WEIGHT_F16 ? ptx::half_to_float(half) : ptx::bf16_to_float(half);
            } else if (WEIGHT == WEIGHT_Q8_0) {
                out[j] = scale * static_cast<float>(static_cast<signed char>(word[i][q % 4] >> (8 * j) & 0xffu));
            } else {
                out[j] = scale * static_cast<float>(static_cast<int>(word[i][q % 4] >> (8 * j + q / 4 * 4) & 15u) - 8);
            }
        }
    }

    __device__ void multiply_f32(float (&sum)[LOADS][BATCH], const Activations &activations, int slab, int lane,
                                 const float (&scales)[LOADS]) const {
#pragma unroll
        for (int q = 0; q < ELEMENTS / 4; ++q) {
            float weight[LOADS][4];
#pragma unroll
            for (int i = 0; i < LOADS; ++i) four(i, q, scales[i], weight[i]);
#pragma unroll
            for (int b = 0; b < BATCH; ++b) {
                const uint4 bits = activations.load(b, slab, q, lane);
                const float x[4] = {__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z),
                                    __uint_as_float(bits.w)};
#pragma unroll
                for (int i = 0; i < LOADS; ++i)
#pragma unroll
                    for (int j = 0; j < 4; ++j) sum[i][b] = fmaf(weight[i][j], x[j], sum[i][b]);
            }
        }
    }
};

}  // namespace dot
