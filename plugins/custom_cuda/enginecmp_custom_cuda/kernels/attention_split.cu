// Attention of tokens that are most of their sequences' only ones: the positions of each are split among blocks, as in
// Flash-Decoding (Dao et al. 2023), so that a long context beside short ones is not walked by one block alone.
//
// How many splits a token has depends on its own position. With one, its block writes the result; with more, a second
// launch merges them.
#include "attention.cuh"
#include "kernel.h"
#include "prefill_params.h"

namespace {

constexpr int MERGE_THREADS = 128;
constexpr int SPLIT_POSITIONS = 4 * kv::PAGE_TOKENS;  // of a block before another joins it

__device__ inline int splits_of(int position, int most) { return min(most, position / SPLIT_POSITIONS + 1); }

}  // namespace

// Grid: (splits, kv_heads, T * tiles of attend::HEADS query heads), tokens before tiles.
KERNEL(attend::THREADS, 2, attention_split, SplitParams) {
    __shared__ attend::Shared shared;
    const int split = blockIdx.x, kv_head = blockIdx.y, t = blockIdx.z % p.tokens, tile = blockIdx.z / p.tokens;
    const int group = p.heads / p.cache.kv_heads;
    const int first = kv_head * group + tile * attend::HEADS;
    const int heads = min(attend::HEADS, group - tile * attend::HEADS);
    const long long head = static_cast<long long>(t) * p.heads + first;
    float *const out = p.out + head * HEAD_DIM;
    const int position = p.position[t];
    if (position < 0) {
        if (split == 0)
            for (int i = threadIdx.x; i < heads * HEAD_DIM; i += attend::THREADS) out[i] = 0.0f;
        return;
    }
    const int splits = splits_of(position, p.splits);
    if (split >= splits) return;
    attend::run(shared, p.q + head * HEAD_DIM, p.cache, p.slot[t], kv_head, heads, position, split, splits);
    __syncthreads();
    float *const sums = p.partial_ml + head * p.splits * 2;
    if (splits > 1) {
        attend::merge(shared, p.partial + (head * p.splits + split) * HEAD_DIM, sums + split * 2, heads, p.splits);
        return;
    }
    attend::merge(shared, out, sums, heads, 1);
    __syncthreads();  // the sums are there; of the values every thread has written those that it divides
    for (int i = threadIdx.x; i < heads * HEAD_DIM; i += attend::THREADS) out[i] /= sums[i / HEAD_DIM * 2 + 1];
}

// Four elements a thread. Grid: (ceil(heads * D / 4 / MERGE_THREADS), T).
KERNEL(MERGE_THREADS, 1, attention_merge, SplitParams) {
    const int t = blockIdx.y, i = (blockIdx.x * MERGE_THREADS + threadIdx.x) * 4;
    const int position = p.position[t];
    if (position < 0 || i >= p.heads * HEAD_DIM) return;
    const int splits = splits_of(position, p.splits);
    if (splits == 1) return;
    const long long head = static_cast<long long>(t) * p.heads + i / HEAD_DIM;
    *reinterpret_cast<float4 *>(p.out + head * HEAD_DIM + i % HEAD_DIM) = attend::merged(
        p.partial + head * p.splits * HEAD_DIM, p.partial_ml + head * p.splits * 2, splits, i % HEAD_DIM);
}
