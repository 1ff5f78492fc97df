// Kernels for the tests of the device API.
#include "kernel.h"
#include "ptx.cuh"

struct VectorParams {
    float *x;  // [n]
    int n;
    float scale;
    float add;
};

struct MeetParams {
    int *count;
    int *seen;
};

// x = scale x + add.
KERNEL(64, 1, affine, VectorParams) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < p.n; i += gridDim.x * blockDim.x) {
        p.x[i] = p.scale * p.x[i] + p.add;
    }
}

// As affine, launched so that it may begin before the kernel before it has ended.
KERNEL(64, 1, patient, VectorParams) {
    ptx::grid_dependency_wait();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < p.n; i += gridDim.x * blockDim.x) {
        p.x[i] = p.scale * p.x[i] + p.add;
    }
}

// Each block writes its three coordinates.
KERNEL(64, 1, where, VectorParams) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    if (threadIdx.x == 0 && block < p.n) {
        p.x[3 * block] = blockIdx.x;
        p.x[3 * block + 1] = blockIdx.y;
        p.x[3 * block + 2] = blockIdx.z;
    }
}

// The first n of x in reverse, by way of the last n floats of `scale` bytes of shared memory.
KERNEL(64, 1, reverse, VectorParams) {
    DYNAMIC_SHARED(float, shared);
    float *last = shared + static_cast<int>(p.scale) / 4 - p.n;
    for (int i = threadIdx.x; i < p.n; i += blockDim.x) last[i] = p.x[i];
    __syncthreads();
    for (int i = threadIdx.x; i < p.n; i += blockDim.x) p.x[i] = last[p.n - 1 - i];
}

// Every block waits until all have come; the last one writes how many it saw.
KERNEL(64, 1, meet, MeetParams) {
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(p.count, 1);
        int seen = 0;
        for (int spins = 0; spins < (1 << 26) && seen < static_cast<int>(gridDim.x); spins++) seen = atomicAdd(p.count, 0);
        atomicMax(p.seen, seen);
    }
}
