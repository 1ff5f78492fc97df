// The kernels of a decode step: one token of each of BATCH sequences. params.h says what each computes.
//
// A launch may begin before the one before it has ended (programmatic dependent launch): every kernel first asks for
// what does not depend on a step (weights, norms), then lets the next launch in, then waits for the one before it.
// Every block waits, so whatever a launch reads after its wait is complete, also that of earlier launches.
#include "attention.cuh"
#include "kernel.h"
#include "kv.cuh"
#include "matvec.cuh"
#include "packing.cuh"
#include "params.h"
#include "ptx.cuh"
#include "rope.cuh"

using matvec::THREADS;

namespace {

__device__ inline void take_turns() {
    ptx::launch_dependents();
    ptx::grid_dependency_wait();
}

struct QkvFinish {
    struct Ahead {
        int position;
        float bias, partner_bias, cosine, sine;
    };
    const QkvParams &p;
    float inverse;  // of the norm, for the lane's sequence

    __device__ Ahead ahead(int row, int b) const {
        Ahead a = {p.position[b], p.bias ? p.bias[row] : 0.0f, p.bias ? p.bias[row ^ 1] : 0.0f, 1.0f, 0.0f};
        const int d = row % HEAD_DIM / 2 * 2;
        if (a.position >= 0 && d < p.rope_dims && row < (p.heads + p.cache.kv_heads) * HEAD_DIM) {
            const float *angle = rope::angle(p.rope, a.position, p.rope_dims, d);
            a.cosine = angle[0], a.sine = angle[1];
        }
        return a;
    }

    __device__ void store(int row, int b, float sum, float other, const Ahead &a) const {
        if (a.position < 0) return;
        const float own = fmaf(sum, inverse, a.bias), partner = fmaf(other, inverse, a.partner_bias);
        const float value = rope::rotated(own, partner, row & 1, a.cosine, a.sine);
        const int head = row / HEAD_DIM, d = row % HEAD_DIM;
        if (head < p.heads) {
            p.q[(static_cast<long long>(b) * p.heads + head) * HEAD_DIM + d] = value;
            return;
        }
        const int which = head < p.heads + p.cache.kv_heads ? kv::KEY : kv::VALUE;
        const int kv_head = head - p.heads - which * p.cache.kv_heads;
        kv::at(p.cache, b, a.position, kv_head, which)[d] = kv::Element<KV>::from(value);
    }
};

// x += sum, for the active sequences.
struct AddFinish {
    struct Ahead {
        bool active;
        float x;
    };
    float *x;
    const int *position;
    int rows;

    __device__ Ahead ahead(int row, int b) const {
        return {position[b] >= 0, x[static_cast<long long>(b) * rows + row]};
    }
    __device__ void store(int row, int b, float sum, float, const Ahead &a) const {
        if (a.active) x[static_cast<long long>(b) * rows + row] = a.x + sum;
    }
};

struct GateUpFinish {
    struct Ahead {
        bool active;
    };
    const GateUpParams &p;
    float inverse;

    __device__ Ahead ahead(int, int b) const { return {p.position[b] >= 0}; }
    __device__ void store(int row, int b, float sum, float other, const Ahead &a) const {
        if (!a.active || row & 1) return;
        const float gate = sum * inverse, up = other * inverse;
        p.h[static_cast<long long>(b) * (p.w.rows / 2) + row / 2] = gate / (1.0f + expf(-gate)) * up;
    }
};

struct HeadFinish {
    using Ahead = GateUpFinish::Ahead;
    const HeadParams &p;
    float inverse;
    unsigned long long best = 0;  // of the lane's rows and sequence

    __device__ Ahead ahead(int, int b) const { return {p.position[b] >= 0}; }
    __device__ void store(int row, int b, float sum, float, const Ahead &a) {
        if (!a.active) return;
        const float logit = sum * inverse;
        if (p.logits) p.logits[static_cast<long long>(b) * p.w.rows + row] = logit;
        // Bits in the order of the numbers; adding 0 makes the two zeros one.
        unsigned bits = __float_as_uint(logit + 0.0f);
        bits = bits >> 31 ? ~bits : bits | 0x80000000u;
        const unsigned long long key = static_cast<unsigned long long>(bits) << 32 | (0xffffffffu - row);
        best = max(best, key);
    }
};

// What attention left, its splits merged.
struct Merged {
    static constexpr int AHEAD = BATCH == 1 ? 1 : 2;
    const OutputParams &p;
    __device__ float4 load(int b, int i) const {
        const long long head = static_cast<long long>(b) * p.heads + i * 4 / HEAD_DIM;
        return attend::merged(p.partial + head * p.splits * HEAD_DIM, p.partial_ml + head * p.splits * 2,
                              attend::used_splits(p.position[b], p.splits), i * 4 % HEAD_DIM);
    }
    __device__ void end(int) {}
};

}  // namespace

KERNEL(THREADS, matvec::BLOCKS, qkv, QkvParams) {
    DYNAMIC_SHARED(uint4, memory);
    __shared__ float squares[BATCH][matvec::WARPS];
    matvec::Rows rows(p.w, p.split_k);
    rows.begin();
    matvec::prefetch(p.norm, p.w.columns);
    take_turns();
    const dot::Activations activations(memory, p.w.columns);
    matvec::Normed source = {p.x, p.norm, p.w.columns, squares};
    matvec::fill(activations, p.w.columns, p.position, source);
    __syncthreads();
    QkvFinish finish = {p, matvec::Normed::inverse(squares, threadIdx.x % BATCH, p.w.columns, p.epsilon)};
    rows.run(activations, finish);
}

// Grid: (splits, kv_heads, BATCH * tiles of HEADS query heads), sequences before tiles.
KERNEL(attend::THREADS, 2, attention, AttentionParams) {
    __shared__ attend::Shared shared;
    const int split = blockIdx.x, kv_head = blockIdx.y, b = blockIdx.z % BATCH, tile = blockIdx.z / BATCH;
    const int group = p.heads / p.cache.kv_heads;
    take_turns();
    const int position = p.position[b];
    if (position < 0) return;
    const int first = kv_head * group + tile * attend::HEADS;
    const int heads = min(attend::HEADS, group - tile * attend::HEADS);
    const long long head = static_cast<long long>(b) * p.heads + first;
    float *const partial = p.partial + (head * p.splits + split) * HEAD_DIM;
    float *const partial_ml = p.partial_ml + (head * p.splits + split) * 2;
    if (split >= attend::used_splits(position, p.splits)) {
        if (threadIdx.x < heads)
            *reinterpret_cast<float2 *>(partial_ml + threadIdx.x * p.splits * 2) = make_float2(MINUS_INFINITY, 0.0f);
        return;
    }
    attend::run(shared, p.q + head * HEAD_DIM, p.cache, b, kv_head, heads, position, split, p.splits);
    __syncthreads();
    attend::merge(shared, partial, partial_ml, heads, p.splits);
}

KERNEL(THREADS, matvec::BLOCKS, output, OutputParams) {
    DYNAMIC_SHARED(uint4, memory);
    matvec::Rows rows(p.w, p.split_k);
    rows.begin();
    take_turns();
    const dot::Activations activations(memory, p.w.columns);
    Merged source = {p};
    matvec::fill(activations, p.w.columns, p.position, source);
    __syncthreads();
    AddFinish finish = {p.x, p.position, p.w.rows};
    rows.run(activations, finish);
}

KERNEL(THREADS, matvec::BLOCKS, gate_up, GateUpParams) {
    DYNAMIC_SHARED(uint4, memory);
    __shared__ float squares[BATCH][matvec::WARPS];
    matvec::Rows rows(p.w, p.split_k);
    rows.begin();
    matvec::prefetch(p.norm, p.w.columns);
    take_turns();
    const dot::Activations activations(memory, p.w.columns);
    matvec::Normed source = {p.x, p.norm, p.w.columns, squares};
    matvec::fill(activations, p.w.columns, p.position, source);
    __syncthreads();
    GateUpFinish finish = {p, matvec::Normed::inverse(squares, threadIdx.x % BATCH, p.w.columns, p.epsilon)};
    rows.run(activations, finish);
}

KERNEL(THREADS, matvec::BLOCKS, down, DownParams) {
    DYNAMIC_SHARED(uint4, memory);
    matvec::Rows rows(p.w, p.split_k);
    rows.begin();
    take_turns();
    const dot::Activations activations(memory, p.w.columns);
    matvec::Plain source = {p.h, p.w.columns};
    matvec::fill(activations, p.w.columns, p.position, source);
    __syncthreads();
    AddFinish finish = {p.x, p.position, p.w.rows};
    rows.run(activations, finish);
}

KERNEL(THREADS, matvec::BLOCKS, head, HeadParams) {
    DYNAMIC_SHARED(uint4, memory);
    __shared__ float squares[BATCH][matvec::WARPS];
    __shared__ unsigned long long best[matvec::WARPS][BATCH];
    matvec::Rows rows(p.w, p.split_k);
    rows.begin();
    matvec::prefetch(p.norm, p.w.columns);
    take_turns();
    const dot::Activations activations(memory, p.w.columns);
    matvec::Normed source = {p.x, p.norm, p.w.columns, squares};
    matvec::fill(activations, p.w.columns, p.position, source);
    __syncthreads();
    HeadFinish finish = {p, matvec::Normed::inverse(squares, threadIdx.x % BATCH, p.w.columns, p.epsilon)};
    rows.run(activations, finish);
    // Lanes l, l + BATCH, ... have rows of the same sequence.
#pragma unroll
    for (int lanes = BATCH; lanes < 32; lanes *= 2)
        finish.best = max(finish.best, __shfl_xor_sync(warp::ALL, finish.best, lanes));
    if (threadIdx.x % 32 < BATCH) best[threadIdx.x / 32][threadIdx.x % 32] = finish.best;
    __syncthreads();
    if (threadIdx.x >= BATCH || p.position[threadIdx.x] < 0) return;
    unsigned long long top = 0;
#pragma unroll
    for (int i = 0; i < matvec::WARPS; ++i) top = max(top, best[i][threadIdx.x]);
    atomicMax(p.best + threadIdx.x, top);
}

// One block.
KERNEL(32, 1, begin, BeginParams) {
    take_turns();
    if (threadIdx.x < BATCH) p.active[threadIdx.x] = threadIdx.x == p.slot ? 0 : -1;
    if (threadIdx.x != 0) return;
    p.position[p.slot] = p.at;
    p.count[p.slot] = 0;
    p.best[p.slot] = p.token < 0 ? 0 : 0xffffffffu - static_cast<unsigned>(p.token);
}

// One block a sequence.
KERNEL(THREADS, 1, next, NextParams) {
    const int b = blockIdx.x;
    take_turns();
    if (p.active[b] < 0) return;
    // No logit was a number: any id is as good, but it must exist.
    const int id = min(0xffffffffu - static_cast<unsigned>(p.best[b]), static_cast<unsigned>(p.table.rows - 1));
    __syncthreads();
    if (threadIdx.x == 0) {
        p.best[b] = 0;
        p.token[b] = id;
        p.position[b] += 1;
        const int count = p.count[b];
        p.count[b] = count + 1;
        ptx::store_system(p.ring + static_cast<long long>(count % p.ring_slots) * p.ring_stride + b, id);
    }
    constexpr int AHEAD = 8;
    float *const x = p.x + static_cast<long long>(b) * p.table.columns;
    for (int base = threadIdx.x; base < p.table.columns; base += THREADS * AHEAD) {
        float value[AHEAD];
        // All loads before the first store, which the compiler must take for one to the table, and none behind a branch.
#pragma unroll
        for (int k = 0; k < AHEAD; ++k)
            value[k] = packing::weight_at(p.table, id, min(base + k * THREADS, p.table.columns - 1));
#pragma unroll
        for (int k = 0; k < AHEAD; ++k)
            if (base + k * THREADS < p.table.columns) x[base + k * THREADS] = value[k];
    }
}
