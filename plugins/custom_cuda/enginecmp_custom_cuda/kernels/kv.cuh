// The paged cache of keys and values of one layer: [page][kv_head][K, V][64 tokens][HEAD_DIM].
#pragma once
#include "kernel.h"
#include "params.h"
#include "ptx.cuh"

#define KV_F16 0
#define KV_F32 1

namespace kv {

constexpr int PAGE_TOKENS = 64;

template <int KIND> struct Element {
    using Type = unsigned short;  // the bits of a half
    static __device__ Type from(float x) { return ptx::float_to_half(x); }
};
template <> struct Element<KV_F32> {
    using Type = float;
    static __device__ Type from(float x) { return x; }
};

using Stored = Element<KV>::Type;
constexpr int VECTOR = 16 / sizeof(Stored);  // elements of a 16-byte load

constexpr int KEY = 0, VALUE = 1;

// The 64 tokens of a head in a page, [64][HEAD_DIM].
__device__ inline Stored *tokens(const Cache &cache, int page, int kv_head, int which) {
    const long long head = (static_cast<long long>(page) * cache.kv_heads + kv_head) * 2 + which;
    return static_cast<Stored *>(cache.pages) + head * (PAGE_TOKENS * HEAD_DIM);
}

// The HEAD_DIM elements of a position.
__device__ inline Stored *at(const Cache &cache, int slot, int position, int kv_head, int which) {
    const int page = cache.table[static_cast<long long>(slot) * cache.table_stride + position / PAGE_TOKENS];
    return tokens(cache, page, kv_head, which) + position % PAGE_TOKENS * HEAD_DIM;
}

// 16 bytes of the cache as numbers.
__device__ inline void unpack(uint4 bits, float (&out)[VECTOR]) {
    const unsigned word[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (KV == KV_F32) {
            out[i] = __uint_as_float(word[i]);
        } else {
            out[2 * i % VECTOR] = ptx::half_to_float(static_cast<unsigned short>(word[i] & 0xffffu));
            out[(2 * i + 1) % VECTOR] = ptx::half_to_float(static_cast<unsigned short>(word[i] >> 16));
        }
    }
}

}  // namespace kv

// Store N neighbouring elements of a head, from d on; d and N are multiples of a 16-byte vector's elements.
template <int N>
__device__ inline void store_kv(const Cache &cache, int slot, int position, int kv_head, int which, int d,
                                const float (&value)[N]) {
    static_assert(N % kv::VECTOR == 0, "whole vectors");
    uint4 *to = reinterpret_cast<uint4 *>(kv::at(cache, slot, position, kv_head, which) + d);
#pragma unroll
    for (int i = 0; i < N; i += kv::VECTOR) {
        unsigned word[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (KV == KV_F32)
                word[j] = __float_as_uint(value[i + j]);
            else
                word[j] = static_cast<unsigned>(ptx::float_to_half(value[(i + 2 * j) % N])) |
                          static_cast<unsigned>(ptx::float_to_half(value[(i + 2 * j + 1) % N])) << 16;
        }
        to[i / kv::VECTOR] = make_uint4(word[0], word[1], word[2], word[3]);
    }
}
