// One kernel for each group of operations; the test knows what they must give.
#include "ptx.cuh"

struct Params {
    const void *a, *b, *c;
    void *out;
    int n, m;
};

template <class T>
static __device__ T *at(const void *memory) {
    return static_cast<T *>(const_cast<void *>(memory));
}

KERNEL(32, 1, shuffles, Params) {
    const int lane = threadIdx.x;
    int *const out = at<int>(p.out) + lane;
    const int value = 100 + lane;
    int row = 0;
    for (int width = 32; width >= 4; width /= 2) {
        out[32 * row++] = __shfl_sync(0xffffffffu, value, p.n, width);
        out[32 * row++] = __shfl_xor_sync(0xffffffffu, value, p.n, width);
    }
}

KERNEL(32, 1, wide_shuffles, Params) {
    const int lane = threadIdx.x;
    at<double>(p.out)[lane] = __shfl_xor_sync(0xffffffffu, 0.5 + lane, 1);
    at<long long>(p.out)[32 + lane] = __shfl_xor_sync(0xffffffffu, (1ll << 40) + lane, 2);
    at<float>(p.out)[128 + lane] = __shfl_xor_sync(0xffffffffu, 0.25f + lane, 4);
    at<unsigned>(p.out)[160 + lane] =
        lane % 2 ? __shfl_sync(0xaaaaaaaau, 7u + lane, 3) : __shfl_sync(0x55555555u, 7u + lane, 3);
}

template <class T>
static __device__ void atomics_of(T *out, T value) {
    atomicMax(out + 0, value);
    atomicAdd(out + 1, value);
    atomicAdd(out + 3, atomicExch(out + 2, value));
}

KERNEL(64, 1, atomics, Params) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    const int small = at<const int>(p.a)[i];
    const long long large = at<const long long>(p.b)[i];
    atomics_of(at<int>(p.out), small);
    atomics_of(at<unsigned>(p.out) + 4, static_cast<unsigned>(small));
    atomics_of(at<unsigned long long>(p.out) + 4, static_cast<unsigned long long>(large));
}

KERNEL(256, 1, to_half, Params) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= p.n) return;
    const float x = at<const float>(p.a)[i];
    at<unsigned short>(p.out)[i] = ptx::float_to_half(x);
    at<unsigned short>(p.out)[p.n + i] = ptx::float_to_bf16(x);
    at<unsigned>(p.out)[p.n + i] = ptx::float2_to_half2(x, 1.0f);
    at<unsigned>(p.out)[2 * p.n + i] = ptx::float2_to_bf162(1.0f, x);
}

KERNEL(256, 1, from_half, Params) {
    const unsigned i = blockIdx.x * 256 + threadIdx.x;
    at<float>(p.out)[i] = ptx::half_to_float(static_cast<unsigned short>(i));
    at<float>(p.out)[65536 + i] = ptx::bf16_to_float(static_cast<unsigned short>(i));
}

KERNEL(256, 1, to_integer, Params) {
    const int i = threadIdx.x;
    if (i >= p.n) return;
    const float x = at<const float>(p.a)[i];
    int *const out = at<int>(p.out) + i;
    out[0] = __float2int_rn(x);
    out[p.n] = static_cast<int>(__float_as_uint(min(x, 3.0f)));
    out[2 * p.n] = static_cast<int>(__float_as_uint(max(x, 3.0f)));
}

KERNEL(256, 1, bits, Params) {
    const int i = threadIdx.x;
    const unsigned x = at<const unsigned>(p.a)[i], y = at<const unsigned>(p.b)[i];
    unsigned *const out = at<unsigned>(p.out) + i;
    out[0] = __clz(x), out[256] = ptx::dp4a(x, y, 5);
}

// a[lane][4], b[lane][2], c[lane][4] -> out[lane][4]
KERNEL(32, 1, products, Params) {
    const int lane = threadIdx.x;
    unsigned a[4], b[2];
    for (int i = 0; i < 4; i++) a[i] = at<const unsigned>(p.a)[lane * 4 + i];
    for (int i = 0; i < 2; i++) b[i] = at<const unsigned>(p.b)[lane * 2 + i];
    if (p.m == 0) {
        int sum[4];
        for (int i = 0; i < 4; i++) sum[i] = at<const int>(p.c)[lane * 4 + i];
        ptx::mma_s8(sum, a, b);
        for (int i = 0; i < 4; i++) at<int>(p.out)[lane * 4 + i] = sum[i];
        return;
    }
    float sum[4];
    for (int i = 0; i < 4; i++) sum[i] = at<const float>(p.c)[lane * 4 + i];
    if (p.m == 1)
        ptx::mma_f16(sum, a, b);
    else
        ptx::mma_bf16(sum, a, b);
    for (int i = 0; i < 4; i++) at<float>(p.out)[lane * 4 + i] = sum[i];
}

// a: 32 rows of 8 elements of 16 bits.
KERNEL(32, 1, matrices, Params) {
    __shared__ __align__(16) unsigned short rows[32][8];
    const int lane = threadIdx.x;
    for (int i = 0; i < 8; i++) rows[lane][i] = at<const unsigned short>(p.a)[lane * 8 + i];
    __syncwarp();
    unsigned four[4], two[2];
    unsigned *out = at<unsigned>(p.out) + lane;
    ptx::ldmatrix_x4(four, rows[lane]);
    for (int i = 0; i < 4; i++, out += 32) *out = four[i];
    ptx::ldmatrix_x4_trans(four, rows[lane]);
    for (int i = 0; i < 4; i++, out += 32) *out = four[i];
    ptx::ldmatrix_x2(two, rows[lane % 16]);
    for (int i = 0; i < 2; i++, out += 32) *out = two[i];
}

// Each thread copies four pieces of 16 bytes in three groups; what is there is read after each wait.
KERNEL(32, 1, async_copies, Params) {
    __shared__ __align__(16) uint4 pieces[32][4];
    const int lane = threadIdx.x;
    for (int i = 0; i < 4; i++) pieces[lane][i] = make_uint4(1, 1, 1, 1);
    const uint4 *const from = at<const uint4>(p.a) + lane * 4;
    ptx::cp_async_16(&pieces[lane][0], from);
    ptx::cp_async_16(&pieces[lane][1], from + 1, lane % 2 == 0);
    ptx::cp_async_commit();
    ptx::cp_async_16(&pieces[lane][2], from + 2);
    ptx::cp_async_commit();
    ptx::cp_async_16(&pieces[lane][3], from + 3);
    ptx::cp_async_commit();
    unsigned *out = at<unsigned>(p.out) + lane * 16;
    for (int i = 0; i < 4; i++) *out++ = pieces[lane][i].y;
    ptx::cp_async_wait<2>();
    for (int i = 0; i < 4; i++) *out++ = pieces[lane][i].y;
    ptx::cp_async_wait<1>();
    for (int i = 0; i < 4; i++) *out++ = pieces[lane][i].y;
    ptx::cp_async_wait<0>();
    for (int i = 0; i < 4; i++) *out++ = pieces[lane][i].y;
}

// A warp fetches n chunks of 1 KiB through a ring of m slots, two warps add each chunk up.
KERNEL(96, 1, ring, Params) {
    DYNAMIC_SHARED(unsigned, slots);
    __shared__ ptx::Barrier full[8], empty[8];
    const int thread = threadIdx.x;
    if (thread == 0) {
        for (int i = 0; i < p.m; i++) ptx::mbarrier_init(full + i, 1), ptx::mbarrier_init(empty + i, 64);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    if (thread >= 64) {
        if (thread != 64) return;
        for (int i = 0; i < p.n; i++) {
            const int slot = i % p.m;
            REMOVABLE("empty", while (!ptx::mbarrier_try_wait(empty + slot, (i / p.m & 1) ^ 1)) {});
            ptx::mbarrier_arrive_expect(full + slot, 1024);
            ptx::bulk_copy_stream(slots + 256 * slot, at<const unsigned>(p.a) + 256 * i, 512, full + slot);
            ptx::bulk_copy_stream(slots + 256 * slot + 128, at<const unsigned>(p.a) + 256 * i + 128, 512, full + slot);
        }
        return;
    }
    unsigned sum = 0;
    for (int i = 0; i < p.n; i++) {
        const int slot = i % p.m;
        REMOVABLE("full", while (!ptx::mbarrier_try_wait(full + slot, i / p.m & 1)) {});
        for (int k = thread; k < 256; k += 64) sum = sum * 3 + slots[256 * slot + k];
        ptx::mbarrier_arrive(empty + slot);
    }
    at<unsigned>(p.out)[thread] = sum;
}

KERNEL(32, 1, exponent, Params) {
    at<float>(p.out)[threadIdx.x] = ptx::exp2_approx(at<const float>(p.a)[threadIdx.x]);
    at<float>(p.out)[32 + threadIdx.x] = rsqrtf(at<const float>(p.b)[threadIdx.x]);
}
