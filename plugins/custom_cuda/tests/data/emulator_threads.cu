// What threads do to each other: barriers, orders, memory, launches, and every way to go wrong.
#include "ptx.cuh"

struct Params {
    const void *a;
    void *out;
    unsigned *counter;
    int n, m;
};

template <class T>
static __device__ T *at(const void *memory) {
    return static_cast<T *>(const_cast<void *>(memory));
}

// n rounds: each thread takes its right neighbour's value and adds 1.
KERNEL(128, 1, rotate, Params) {
    __shared__ int values[128];
    const int i = threadIdx.x;
    int value = i;
    for (int round = 0; round < p.n; round++) {
        values[i] = value;
        __syncthreads();
        value = values[(i + 1) % 128] + 1;
        __syncthreads();
    }
    at<int>(p.out)[blockIdx.x * 128 + i] = value;
}

// The threads from n on have left before the others meet, and the last of those leaves while they wait.
KERNEL(128, 1, leave_early, Params) {
    __shared__ int values[128];
    const int i = threadIdx.x;
    if (i >= p.n) return;
    values[i] = i;
    if (i == p.n - 1) return;
    __syncthreads();
    at<int>(p.out)[i] = values[i + 1];
}

KERNEL(64, 1, rotate_warps, Params) {
    __shared__ int values[2][32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int value = lane;
    for (int round = 0; round < p.n; round++) {
        values[warp][lane] = value;
        __syncwarp();
        value = values[warp][(lane + 1) % 32] + 1;
        __syncwarp();
    }
    at<int>(p.out)[threadIdx.x] = value;
}

// Two pairs of warps rotate apart from each other, the second m rounds more.
KERNEL(128, 1, rotate_pairs, Params) {
    __shared__ int values[2][64];
    const int pair = threadIdx.x / 64, i = threadIdx.x % 64;
    int value = i;
    for (int round = 0; round < p.n + pair * p.m; round++) {
        values[pair][i] = value;
        ptx::barrier_sync(1 + pair, 64);
        value = values[pair][(i + 1) % 64] + 1;
        ptx::barrier_sync(1 + pair, 64);
    }
    at<int>(p.out)[threadIdx.x] = value;
}

// The first warp hands over without waiting, the second waits.
KERNEL(64, 1, hand_over, Params) {
    __shared__ int values[32];
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 32) {
        values[lane] = lane * 3;
        ptx::barrier_arrive(3, 64);
    } else {
        ptx::barrier_sync(3, 64);
        at<int>(p.out)[lane] = values[31 - lane];
    }
}

static __device__ void grid_barrier(unsigned *counter, int round) {
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::add_release(counter, 1);
        while (ptx::load_acquire(counter) < gridDim.x * (round + 1)) {}
    }
    __syncthreads();
}

// As rotate, between the blocks of a cooperative launch, through global memory. Each barrier has its own counter.
KERNEL(32, 1, rotate_blocks, Params) {
    int *const values = at<int>(p.out);
    const int i = blockIdx.x * 32 + threadIdx.x, count = gridDim.x * 32;
    int value = i;
    for (int round = 0; round < p.n; round++) {
        values[i] = value;
        REMOVABLE("grid barrier", grid_barrier(p.counter, round));
        value = values[(i + 32) % count] + 1;
        REMOVABLE("grid barrier", grid_barrier(p.counter + 1, round));
    }
    values[i] = value;
}

KERNEL(96, 1, order, Params) { at<int>(p.out)[atomicAdd(p.counter, 1u)] = blockIdx.x * 96 + threadIdx.x; }

KERNEL(1, 1, place, Params) {
    const int number = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    at<int>(p.out)[number] = blockIdx.x + 10 * blockIdx.y + 100 * blockIdx.z;
}

// What shared memory holds when a block begins.
KERNEL(32, 1, fresh, Params) {
    __shared__ unsigned fixed[32];
    DYNAMIC_SHARED(unsigned, dynamic);
    unsigned *const out = at<unsigned>(p.out) + blockIdx.x * 64;
    out[threadIdx.x] = fixed[threadIdx.x];
    out[32 + threadIdx.x] = dynamic[threadIdx.x];
    fixed[threadIdx.x] = dynamic[threadIdx.x] = 7;
}

KERNEL(64, 1, fill, Params) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    if (i < p.n) at<int>(p.out)[i] = p.m;
}

// Adds m to what the launch in front left; n = 0 does not wait for it.
KERNEL(64, 1, follow, Params) {
    ptx::launch_dependents();
    ptx::grid_dependency_wait();
    at<int>(p.out)[threadIdx.x] = at<const int>(p.a)[threadIdx.x] * 2 + p.m;
}

KERNEL(32, 1, poll, Params) {
    if (threadIdx.x == 0)
        while (ptx::load_system(at<const int>(p.a)) != p.n) {}
    __syncwarp();
    ptx::store_system(at<int>(p.out) + threadIdx.x, p.m);
}

static __device__ int deep(int n, int *sink) {
    volatile int room[256];
    room[n % 256] = n;
    if (n > 0) *sink += deep(n - 1, sink);
    return room[n % 256];
}

// Every way to go wrong, by number.
KERNEL(64, 1, wrong, Params) {
    DYNAMIC_SHARED(int, shared);
    const int i = threadIdx.x;
    int *const out = at<int>(p.out);
    switch (p.m) {
        case 0:
            if (i < 32) __syncthreads();
            ptx::barrier_sync(1, 64);
            break;
        case 1: while (ptx::load_acquire(p.counter) == 0) {} break;
        case 2: out[p.n + i] = 1; break;
        case 3: if (i == 5) ptx::trap(); break;
        case 4: if (i == 1) *at<volatile int>(nullptr) = 1; break;
        case 5: at<uint4>(at<char>(p.out) + 4)[i] = make_uint4(1, 2, 3, 4); break;
        case 6: shared[p.n + i] = 1; break;
        case 7: if (i == 63) deep(1 << 20, out); break;
        case 8: ptx::load_stream(at<const uint4>(at<char>(p.out) + 8)); break;
        case 13:
            if (i > 0) break;
            ptx::mbarrier_init(at<ptx::Barrier>(shared), 1);
            if (p.n) ptx::fence_mbarrier_init();
            ptx::mbarrier_arrive_expect(at<ptx::Barrier>(shared), 16);
            shared[4] = 7;
            ptx::bulk_copy_stream(shared + 4, p.a, 16, at<ptx::Barrier>(shared));
            out[1] = shared[4];  // neither what was there nor what comes
            while (!ptx::mbarrier_try_wait(at<ptx::Barrier>(shared), 0)) {}
            out[0] = shared[4] + 1;
            break;
        case 14: ptx::bulk_copy_stream(shared + 1, p.a, 16, at<ptx::Barrier>(shared)); break;
        case 9: if (i == 0) ptx::mbarrier_arrive(at<ptx::Barrier>(shared)); break;
        case 10: if (i < 16) __shfl_sync(0xffff0000u, i, 0); break;
        case 12:
            if (i % 32 < 16) {
                unsigned two[2];
                ptx::ldmatrix_x2(two, shared);
            } else {
                __shfl_sync(0xffffffffu, i, 0);
            }
            break;
        case 11: if (i < 31) __syncwarp(); else __syncthreads(); break;
    }
    if (p.m == 1) out[i] = 0;
}
