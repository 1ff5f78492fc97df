// What a machine can do at most: read bandwidth, and the price of a launch, of a graph node and of a grid barrier.
//
// Each kernel leaves something that shows that its work was done.
#include "kernel.h"
#include "ptx.cuh"

struct ReadParams {
    const uint4 *data;
    long long vectors;  // of 16 bytes
    unsigned *sum;      // += all 32-bit words, wrapping
};

struct StepParams {
    unsigned *count;  // + 1
};

struct MeetParams {
    unsigned *count;  // of arrivals; starts at 0; and one behind it
    const uint4 *data;
    long long vectors;  // of 16 bytes
    int rounds;
    int laps;  // over the data; 0 reads nothing
};

constexpr int MEETING = 256;  // threads of a block that wait

constexpr int AHEAD = 8;  // loads in flight a thread

__device__ inline unsigned sum_ahead(const uint4 *data, long long stride) {
    uint4 loaded[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; k++) loaded[k] = ptx::load_stream(data + k * stride);
    unsigned total = 0;
#pragma unroll
    for (int k = 0; k < AHEAD; k++) total += loaded[k].x + loaded[k].y + loaded[k].z + loaded[k].w;
    return total;
}

// 16-byte loads, eight in flight a thread, neighbours in a warp side by side.
KERNEL(512, 2, read, ReadParams) {
    const long long stride = static_cast<long long>(gridDim.x) * 512;
    unsigned total = 0;
    long long i = static_cast<long long>(blockIdx.x) * 512 + threadIdx.x;
    for (; i + (AHEAD - 1) * stride < p.vectors; i += AHEAD * stride) {
        total += sum_ahead(p.data + i, stride);
    }
    for (; i < p.vectors; i += stride) {
        const uint4 loaded = ptx::load_stream(p.data + i);
        total += loaded.x + loaded.y + loaded.z + loaded.w;
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) total += __shfl_xor_sync(0xffffffffu, total, lanes);
    if (threadIdx.x % 32 == 0) atomicAdd(p.sum, total);
}

// Next to nothing: what is left is the price of running a kernel after another.
KERNEL(32, 1, step, StepParams) {
    if (blockIdx.x == 0 && threadIdx.x == 0) *p.count += 1;
}

// The same, launched so that it may begin before the kernel before it has ended.
KERNEL(32, 1, step_overlapped, StepParams) {
    ptx::launch_dependents();
    ptx::grid_dependency_wait();
    if (blockIdx.x == 0 && threadIdx.x == 0) *p.count += 1;
}

// All blocks wait for each other, `rounds` times, as those of persistent.cu do: the consumers meet, one of their threads
// raises the counter and polls it, they meet again. Beside them as many threads read, `laps` times over or until the last
// round: what a dependency costs while the memory is busy.
KERNEL(2 * MEETING, 1, meet, MeetParams) {
    __shared__ int over;
    if (threadIdx.x == 0) over = 0;
    __syncthreads();
    if (threadIdx.x >= MEETING) {
        const long long stride = static_cast<long long>(gridDim.x) * MEETING;
        unsigned total = 0;
        for (int lap = 0; lap < p.laps; lap++) {
            long long i = static_cast<long long>(blockIdx.x) * MEETING + threadIdx.x - MEETING;
            for (; i + (AHEAD - 1) * stride < p.vectors; i += AHEAD * stride) {
                total += sum_ahead(p.data + i, stride);
                if (*static_cast<volatile int *>(&over)) break;
            }
            if (*static_cast<volatile int *>(&over)) break;
        }
        // Next to never, but the compiler must take the loads for needed.
        if (total == 0x9e3779b9u) atomicAdd(p.count + 1, 1u);
        return;
    }
    for (int round = 1; round <= p.rounds; round++) {
        ptx::barrier_sync(1, MEETING);
        if (threadIdx.x == 0) {
            ptx::add_release(p.count, 1u);
            const unsigned all = gridDim.x * static_cast<unsigned>(round);
            while (static_cast<int>(ptx::load_acquire(p.count) - all) < 0) {
            }
        }
        ptx::barrier_sync(1, MEETING);
    }
    if (threadIdx.x == 0) *static_cast<volatile int *>(&over) = 1;
}
