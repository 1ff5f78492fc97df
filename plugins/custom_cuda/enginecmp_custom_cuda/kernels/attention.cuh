// One sequence, one key and value head, up to HEADS of the query heads that share it, one split of the positions.
//
// Split s has the pages s, s + splits, ...: balanced at every length, and known before the position is. LANES lanes
// hold one position; a warp has 32 / LANES groups of them, each with a running softmax (Milakov & Gimelshein 2018,
// arXiv:1805.02867) of its own over UNROLL positions at a time. Groups are merged at the end, then warps.
#pragma once
#include "kernel.h"
#include "kv.cuh"
#include "params.h"
#include "ptx.cuh"
#include "warp.cuh"

// NVRTC has no INFINITY.
#define MINUS_INFINITY __uint_as_float(0xff800000u)

namespace attend {

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int ROW_VECTORS = HEAD_DIM / kv::VECTOR;                   // of 16 bytes, of a position's key
constexpr int LANES = ROW_VECTORS % 32 == 0   ? 32                   // the largest power of two that divides them
                      : ROW_VECTORS % 16 == 0 ? 16
                      : ROW_VECTORS % 8 == 0  ? 8
                      : ROW_VECTORS % 4 == 0  ? 4
                                              : 2;
constexpr int VECTORS = ROW_VECTORS / LANES;                         // of a lane
constexpr int FLOATS = VECTORS * kv::VECTOR;                         // of a lane
constexpr int HEADS = VECTORS == 1 ? 4 : 1;                          // of a block: two registers an element each
constexpr int UNROLL = VECTORS == 1 ? 4 : 2;
constexpr int GROUPS = 32 / LANES;
constexpr int UNIT = GROUPS * UNROLL;                                // positions of a warp's round
constexpr int PAGE_UNITS = kv::PAGE_TOKENS / UNIT;
static_assert(ROW_VECTORS % 2 == 0 && PAGE_UNITS * UNIT == kv::PAGE_TOKENS, "a round lies in one page");

// How many of `splits` splits have a page when the positions 0..position are seen; the first so many.
__device__ inline int used_splits(int position, int splits) { return min(splits, position / kv::PAGE_TOKENS + 1); }

// exp(from - to) for running maxima, -infinity included.
__device__ inline float decay(float from, float to) { return from == to ? 1.0f : expf(from - to); }

// One lane's part of the softmax-weighted sum over the positions that its group has seen.
struct Running {
    float largest = MINUS_INFINITY, sum = 0.0f;
    float value[FLOATS] = {};

    __device__ void merge(int lanes) {
        const float other = __shfl_xor_sync(warp::ALL, largest, lanes), top = fmaxf(largest, other);
        const float scale = decay(largest, top);
        sum = sum * scale;
        sum += __shfl_xor_sync(warp::ALL, sum, lanes);
#pragma unroll
        for (int i = 0; i < FLOATS; ++i) {
            value[i] *= scale;
            value[i] += __shfl_xor_sync(warp::ALL, value[i], lanes);
        }
        largest = top;
    }
};

// Where dimension i of a lane's FLOATS is in the head.
__device__ inline int dimension(int i, int lane) {
    return (i / kv::VECTOR * LANES + lane % LANES) * kv::VECTOR + i % kv::VECTOR;
}

struct Shared {
    float value[WARPS][HEADS][HEAD_DIM];
    float largest[WARPS][HEADS], sum[WARPS][HEADS];
};

// q: the first of `heads` (at most HEADS) heads, [heads][HEAD_DIM]. All threads of the block; when it returns, `shared`
// holds every warp's part, and the block has still to be waited for.
__device__ inline void run(Shared &shared, const float *q, const Cache &cache, int slot, int kv_head, int heads,
                           int position, int split, int splits) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float query[HEADS][FLOATS];
    const float scale = 1.0f / sqrtf(static_cast<float>(HEAD_DIM));
#pragma unroll
    for (int g = 0; g < HEADS; ++g)
#pragma unroll
        for (int i = 0; i < FLOATS; i += 4) {
            const float4 four = g < heads ? *reinterpret_cast<const float4 *>(q + g * HEAD_DIM + dimension(i, lane))
                                          : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            query[g][i] = four.x * scale, query[g][i + 1] = four.y * scale;
            query[g][i + 2] = four.z * scale, query[g][i + 3] = four.w * scale;
        }
    Running running[HEADS];
    const int *table = cache.table + static_cast<long long>(slot) * cache.table_stride;
    for (int unit = warp;; unit += WARPS) {
        const int page = split + unit / PAGE_UNITS * splits;
        if (page > position / kv::PAGE_TOKENS) break;
        const int first = unit % PAGE_UNITS * UNIT + lane / LANES;  // in the page
        const int number = table[page];
        const uint4 *keys = reinterpret_cast<const uint4 *>(kv::tokens(cache, number, kv_head, kv::KEY));
        const uint4 *values = reinterpret_cast<const uint4 *>(kv::tokens(cache, number, kv_head, kv::VALUE));
        uint4 key[UNROLL][VECTORS], value[UNROLL][VECTORS];
        bool seen[UNROLL];
#pragma unroll
        for (int j = 0; j < UNROLL; ++j) {
            const int token = first + j * GROUPS;
            seen[j] = page * kv::PAGE_TOKENS + token <= position;
#pragma unroll
            for (int v = 0; v < VECTORS; ++v) {
                // Memory behind the position was never written; a zero keeps what it holds out of the sums.
                const int at = token * ROW_VECTORS + v * LANES + lane % LANES;
                key[j][v] = seen[j] ? keys[at] : make_uint4(0, 0, 0, 0);
                value[j][v] = seen[j] ? values[at] : make_uint4(0, 0, 0, 0);
            }
        }
        float score[UNROLL][HEADS];
#pragma unroll
        for (int j = 0; j < UNROLL; ++j) {
#pragma unroll
            for (int g = 0; g < HEADS; ++g) score[j][g] = 0.0f;
#pragma unroll
            for (int v = 0; v < VECTORS; ++v) {
                float element[kv::VECTOR];
                kv::unpack(key[j][v], element);
#pragma unroll
                for (int g = 0; g < HEADS; ++g)
#pragma unroll
                    for (int i = 0; i < kv::VECTOR; ++i)
                        score[j][g] = fmaf(query[g][v * kv::VECTOR + i], element[i], score[j][g]);
            }
#pragma unroll
            for (int g = 0; g < HEADS; ++g)
                if (g < heads) score[j][g] = warp::sum<LANES>(score[j][g]);
        }
#pragma unroll
        for (int g = 0; g < HEADS; ++g) {
            if (g >= heads) continue;
            Running &r = running[g];
            float top = r.largest;
#pragma unroll
            for (int j = 0; j < UNROLL; ++j)
                if (seen[j]) top = fmaxf(top, score[j][g]);
            const float old = decay(r.largest, top);
            r.largest = top;
            r.sum *= old;
#pragma unroll
            for (int i = 0; i < FLOATS; ++i) r.value[i] *= old;
#pragma unroll
            for (int j = 0; j < UNROLL; ++j) {
                score[j][g] = seen[j] ? expf(score[j][g] - top) : 0.0f;
                r.sum += score[j][g];
            }
        }
#pragma unroll
        for (int j = 0; j < UNROLL; ++j)
#pragma unroll
            for (int v = 0; v < VECTORS; ++v) {
                float element[kv::VECTOR];
                kv::unpack(value[j][v], element);
#pragma unroll
                for (int g = 0; g < HEADS; ++g)
                    if (g < heads)
#pragma unroll
                        for (int i = 0; i < kv::VECTOR; ++i) {
                            float &sum = running[g].value[v * kv::VECTOR + i];
                            sum = fmaf(score[j][g], element[i], sum);
                        }
            }
    }
#pragma unroll
    for (int g = 0; g < HEADS; ++g) {
        if (g >= heads) continue;
#pragma unroll
        for (int lanes = LANES; lanes < 32; lanes *= 2) running[g].merge(lanes);
        if (lane >= LANES) continue;
#pragma unroll
        for (int i = 0; i < FLOATS; ++i) shared.value[warp][g][dimension(i, lane)] = running[g].value[i];
        if (lane == 0) {
            shared.largest[warp][g] = running[g].largest;
            shared.sum[warp][g] = running[g].sum;
        }
    }
}

// Merge the warps' parts, after the block was waited for: `heads` heads of partial and partial_ml of one split. From
// one head to the next it is `splits` rows.
__device__ inline void merge(const Shared &shared, float *partial, float *partial_ml, int heads, int splits) {
    // The thread anew, and so not in a register during the rounds, where two blocks leave 128.
    for (int i = ptx::thread_index(); i < heads * HEAD_DIM; i += THREADS) {
        const int g = i / HEAD_DIM, d = i % HEAD_DIM;
        float top = shared.largest[0][g];
#pragma unroll
        for (int w = 1; w < WARPS; ++w) top = fmaxf(top, shared.largest[w][g]);
        float sum = 0.0f, value = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            const float scale = decay(shared.largest[w][g], top);
            sum = fmaf(shared.sum[w][g], scale, sum);
            value = fmaf(shared.value[w][g][d], scale, value);
        }
        partial[static_cast<long long>(g) * splits * HEAD_DIM + d] = value;
        if (d == 0) *reinterpret_cast<float2 *>(partial_ml + g * splits * 2) = make_float2(top, sum);
    }
}

// Four neighbouring elements of attention's result: the first `splits` splits of one head merged. Loads of a few splits
// are on their way together, also those of an empty one, whose values were never written and do not count.
template <int TOGETHER = BATCH == 1 ? 2 : 4>  // as many as leave a step's first weights their registers
__device__ inline float4 merged(const float *partial, const float *partial_ml, int splits, int d) {
    const float2 *ml = reinterpret_cast<const float2 *>(partial_ml);
    float top = MINUS_INFINITY, sum = 0.0f;
    float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
    for (int first = 0; first < splits; first += TOGETHER) {
        float2 split[TOGETHER];
        float4 part[TOGETHER];
#pragma unroll
        for (int k = 0; k < TOGETHER; ++k) {
            const int s = min(first + k, splits - 1);
            part[k] = *reinterpret_cast<const float4 *>(partial + s * HEAD_DIM + d);
            split[k] = ml[s];
            if (first + k >= splits) split[k].y = 0.0f;
        }
        float now = top;
#pragma unroll
        for (int k = 0; k < TOGETHER; ++k) now = fmaxf(now, split[k].x);
        const float old = decay(top, now);
        top = now;
        sum *= old;
        value.x *= old, value.y *= old, value.z *= old, value.w *= old;
#pragma unroll
        for (int k = 0; k < TOGETHER; ++k) {
            // No branch, into which the compiler would take the load.
            const bool full = split[k].y != 0.0f;
            const float scale = full ? decay(split[k].x, top) : 0.0f;
            sum = fmaf(split[k].y, scale, sum);
            value.x = fmaf(full ? part[k].x : 0.0f, scale, value.x);
            value.y = fmaf(full ? part[k].y : 0.0f, scale, value.y);
            value.z = fmaf(full ? part[k].z : 0.0f, scale, value.z);
            value.w = fmaf(full ? part[k].w : 0.0f, scale, value.w);
        }
    }
    const float share = 1.0f / sum;
    return make_float4(value.x * share, value.y * share, value.z * share, value.w * share);
}

}  // namespace attend
