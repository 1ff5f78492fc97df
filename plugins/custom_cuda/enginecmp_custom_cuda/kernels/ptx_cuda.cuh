// The instructions of ptx.cuh as inline PTX. Include ptx.cuh, not this.
#pragma once

#define PTX_INLINE static __device__ __forceinline__

#if __CUDA_ARCH__ >= 800
#define PTX_AMPERE 1
#endif
#if __CUDA_ARCH__ >= 900
#define PTX_HOPPER 1
#endif

namespace ptx {

using Barrier = unsigned long long;  // an mbarrier, in shared memory, 8-byte aligned

PTX_INLINE unsigned shared_address(const void *shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

PTX_INLINE void trap() { asm volatile("trap;"); }

// ---- memory

// 16 bytes that are read once: not kept in L1. Never of memory that this kernel writes.
PTX_INLINE uint4 load_stream(const uint4 *address) {
    uint4 out;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
        : "l"(address));
    return out;
}

PTX_INLINE void prefetch_l2(const void *address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }

// Acquire and release between the blocks of a grid.
PTX_INLINE unsigned load_acquire(const unsigned *address) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}
PTX_INLINE int load_acquire(const int *address) {
    return static_cast<int>(load_acquire(reinterpret_cast<const unsigned *>(address)));
}
PTX_INLINE void add_release(unsigned *address, unsigned value) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

// The same with the host, for pinned memory. load_system acquires; store_system orders nothing but is seen by the host while the kernel runs.
PTX_INLINE unsigned load_system(const unsigned *address) {
    unsigned value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}
PTX_INLINE int load_system(const int *address) {
    return static_cast<int>(load_system(reinterpret_cast<const unsigned *>(address)));
}
PTX_INLINE void store_system(unsigned *address, unsigned value) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
PTX_INLINE void store_system(int *address, int value) {
    store_system(reinterpret_cast<unsigned *>(address), static_cast<unsigned>(value));
}

// ---- numbers; halves and bfloat16 as their 16 bits, pairs with the first in the low half

PTX_INLINE float half_to_float(unsigned short bits) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(bits));
    return out;
}
PTX_INLINE unsigned short float_to_half(float x) {
    unsigned short out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(x));
    return out;
}
PTX_INLINE float bf16_to_float(unsigned short bits) { return __uint_as_float(static_cast<unsigned>(bits) << 16); }
PTX_INLINE unsigned short float_to_bf16(float x) {
#ifdef PTX_AMPERE
    unsigned short out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out) : "f"(x));
    return out;
#else
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
}
PTX_INLINE unsigned float2_to_half2(float low, float high) {
#ifdef PTX_AMPERE
    unsigned out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
#else
    return static_cast<unsigned>(float_to_half(high)) << 16 | float_to_half(low);
#endif
}
PTX_INLINE unsigned float2_to_bf162(float low, float high) {
#ifdef PTX_AMPERE
    unsigned out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
#else
    return static_cast<unsigned>(float_to_bf16(high)) << 16 | float_to_bf16(low);
#endif
}

// Four products of signed bytes and a sum.
PTX_INLINE int dp4a(unsigned a, unsigned b, int sum) {
    int out;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(sum));
    return out;
}

PTX_INLINE float exp2_approx(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

// ---- cp.async: 16 bytes from global to shared memory, later; zeros where not `real`: sm_80 and later.

PTX_INLINE void cp_async_16(void *shared, const void *global, bool real = true) {
#ifdef PTX_AMPERE
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(real ? 16 : 0)
                 : "memory");
#else
    trap();
#endif
}
PTX_INLINE void cp_async_commit() {
#ifdef PTX_AMPERE
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Wait until at most `groups` of this thread's groups are under way.
template <int groups>
PTX_INLINE void cp_async_wait() {
#ifdef PTX_AMPERE
    asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
#endif
}

// ---- bulk copies and mbarriers: sm_90

PTX_INLINE void mbarrier_init(Barrier *barrier, unsigned arrivals) {
#ifdef PTX_HOPPER
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#else
    trap();
#endif
}
// Between mbarrier_init and the first bulk copy that names the barrier; __syncthreads for the other threads.
PTX_INLINE void fence_mbarrier_init() {
#ifdef PTX_HOPPER
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
// Between ordinary accesses to shared memory and bulk copies of the same bytes.
PTX_INLINE void fence_async() {
#ifdef PTX_HOPPER
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
PTX_INLINE void mbarrier_arrive(Barrier *barrier) {
#ifdef PTX_HOPPER
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#else
    trap();
#endif
}
// Arrive, and say how many bytes this phase waits for besides.
PTX_INLINE void mbarrier_arrive_expect(Barrier *barrier, unsigned bytes) {
#ifdef PTX_HOPPER
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
#else
    trap();
#endif
}
// Whether the phase of this parity is over; waits a little. A fresh barrier is in phase 0.
PTX_INLINE bool mbarrier_try_wait(Barrier *barrier, unsigned parity) {
#ifdef PTX_HOPPER
    unsigned done;
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    return done != 0;
#else
    trap();
    return true;
#endif
}
// bytes, both addresses: multiples of 16. One thread issues it, of data that is read once.
PTX_INLINE void bulk_copy_stream(void *shared, const void *global, unsigned bytes, Barrier *barrier) {
#ifdef PTX_HOPPER
    asm volatile(
        "{\n.reg .b64 policy;\ncreatepolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], "
        "policy;\n}" ::"r"(shared_address(shared)),
        "l"(global), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
#else
    trap();
#endif
}

// ---- tensor cores: sm_80 and later, a trap before; all 32 lanes together. Fragments: see ptx_cpu.h.

PTX_INLINE void ldmatrix_x4(unsigned (&out)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row)));
}
PTX_INLINE void ldmatrix_x4_trans(unsigned (&out)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row)));
}
PTX_INLINE void ldmatrix_x2(unsigned (&out)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(shared_address(row)));
}

// sum (16 x 8) += a (16 x 32, row) b (32 x 8, column), signed bytes.
PTX_INLINE void mma_s8(int (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef PTX_AMPERE
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    trap();
#endif
}

// The same, sum = start + a b: the compiler would copy a start that many sums share before every instruction.
PTX_INLINE void mma_s8(int (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], const int (&start)[4]) {
#ifdef PTX_AMPERE
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=r"(sum[0]), "=r"(sum[1]), "=r"(sum[2]), "=r"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(start[0]), "r"(start[1]),
          "r"(start[2]), "r"(start[3]));
#else
    trap();
#endif
}

// sum (16 x 8) += a (16 x 16, row) b (16 x 8, column), halves, float32 sums.
PTX_INLINE void mma_f16(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef PTX_AMPERE
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    trap();
#endif
}

// The same with bfloat16.
PTX_INLINE void mma_bf16(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef PTX_AMPERE
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    trap();
#endif
}

// ---- order

// A barrier of some warps of a block: id 1..15 (0 is __syncthreads), threads a multiple of 32.
PTX_INLINE void barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
PTX_INLINE void barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Programmatic launches: wait for the kernel in front; let the one behind begin. Before sm_90 kernels never overlap.
PTX_INLINE void grid_dependency_wait() {
#ifdef PTX_HOPPER
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
PTX_INLINE void launch_dependents() {
#ifdef PTX_HOPPER
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// threadIdx.x, read anew: nothing that is computed from it stays in a register from one call to the next.
PTX_INLINE int thread_index() {
    int index;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    return index;
}

PTX_INLINE void nanosleep(unsigned nanoseconds) { asm volatile("nanosleep.u32 %0;" ::"r"(nanoseconds)); }

}  // namespace ptx
