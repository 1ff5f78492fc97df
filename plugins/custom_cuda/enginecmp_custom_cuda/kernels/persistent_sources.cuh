// Where a matrix's input comes from: `load(i)` gives columns 4 i to 4 i + 3.
//
// The formulas are decode.cu's and matvec.cuh's, in the same order, so that both compute the same bits.
#pragma once
#include "attention.cuh"
#include "kernel.h"
#include "matvec.cuh"
#include "packing.cuh"
#include "persistent_params.h"
#include "persistent_wait.cuh"

namespace persistent {

__device__ inline float4 four(const float *x, int i) { return reinterpret_cast<const float4 *>(x)[i]; }

// AHEAD of each: how many of its loads a thread has on their way together.

// The residual stream times the norm's weight; its squares are added up on the way.
struct Normed {
    static constexpr int AHEAD = 4;
    const float *x, *weight;
    float square = 0.0f;
    __device__ float4 load(int i) {
        const float4 v = four(x, i), w = four(weight, i);
        square += rms_norm::square4(v);
        return make_float4(v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w);
    }
};

struct Plain {
    static constexpr int AHEAD = 8;
    const float *x;
    __device__ float4 load(int i) const { return four(x, i); }
};

// What attention left, its first `active` splits merged: nobody has written the others.
struct Merged {
    static constexpr int AHEAD = 2;
    const PersistentParams &p;
    int active;
    __device__ float4 load(int i) const {
        const long long row = static_cast<long long>(i * 4 / HEAD_DIM) * p.splits;
        // Eight: registers of this kernel hold no weights meanwhile.
        return attend::merged<8>(p.partial + row * HEAD_DIM, p.partial_ml + row * 2, active, i * 4 % HEAD_DIM);
    }
};

// Columns 4 first to 4 last - 1 of the activations; `first` is a multiple of a chunk's. All consumers call it.
template <class Source>
__device__ __forceinline__ void fill(const dot::Activations &activations, int first, int last, Source &source) {
    constexpr int AHEAD = Source::AHEAD;
    for (int base = first; base < last; base += CONSUMERS * AHEAD) {
        float4 x[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            const int i = base + k * CONSUMERS + threadIdx.x;
            x[k] = i < last ? source.load(i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            const int i = base + k * CONSUMERS + threadIdx.x;
            if (base + k * CONSUMERS < last) activations.store(0, i, x[k], i < last);
        }
    }
}

// x = a row of the embedding, 32 columns a thread, all of whose loads are on their way together. All consumers call it.
__device__ inline void embed(const PersistentParams &p, int id) {
    constexpr int BLOCK = packing::BLOCK, WORDS = packing::BLOCK_BYTES / 16;
    const Matrix table = {p.embedding, p.vocabulary, p.hidden};
    for (int block = threadIdx.x; block < p.hidden / BLOCK; block += CONSUMERS) {
        const packing::Chunk chunk(table, id / packing::TILE_ROWS, block * BLOCK / packing::CHUNK_COLUMNS);
        const int row = id % packing::TILE_ROWS, within = block % (packing::CHUNK_COLUMNS / BLOCK);
        const unsigned char *const at = chunk.weights + row * chunk.row_bytes() + within * packing::BLOCK_BYTES;
        const float scale = packing::SCALED ? ptx::half_to_float(chunk.scales(row)[within]) : 1.0f;
        float *const x = p.x + block * BLOCK;
#pragma unroll
        for (int i = 0; i < WORDS; ++i) {
            const uint4 bits = ptx::load_stream(reinterpret_cast<const uint4 *>(at) + i);
            const unsigned word[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (WEIGHT == WEIGHT_F32) {
                    x[i * 4 + j] = __uint_as_float(word[j]);
                } else if (WEIGHT == WEIGHT_F16 || WEIGHT == WEIGHT_BF16) {
#pragma unroll
                    for (int k = 0; k < 2; ++k) {
                        const unsigned short half = static_cast<unsigned short>(word[j] >> (16 * k) & 0xffffu);
                        x[i * 8 + j * 2 + k] =
                            WEIGHT == WEIGHT_F16 ? ptx::half_to_float(half) : ptx::bf16_to_float(half);
                    }
                } else {
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        const unsigned byte = word[j] >> (8 * k) & 0xffu;
                        if (WEIGHT == WEIGHT_Q8_0) {
                            x[i * 16 + j * 4 + k] = scale * static_cast<float>(static_cast<signed char>(byte));
                        } else {  // Q4_0: the low halves of the 16 bytes are the first 16 weights
                            x[j * 4 + k] = scale * static_cast<float>(static_cast<int>(byte & 15u) - 8);
                            x[16 + j * 4 + k] = scale * static_cast<float>(static_cast<int>(byte >> 4) - 8);
                        }
                    }
                }
            }
        }
    }
}

}  // namespace persistent
