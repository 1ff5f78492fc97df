// The functions of ptx.cuh for the CPU: the same arguments, the same meaning. Include ptx.cuh, not this.
//
// Fragments of a matrix, by lane (PTX ISA, "Matrix Fragments for mma.m16n8k16" and "... mma.m16n8k32"), with
// group = lane / 4 and inner = lane % 4:
//   a 16 x K: register r holds row group + 8 (r % 2), columns inner n + K/2 (r / 2) + 0..n-1, n = 4 / size elements
//   b K x 8:  register r holds rows inner n + K/2 r + 0..n-1 of column group
//   c 16 x 8: register r holds row group + 8 (r / 2), column 2 inner + r % 2
#pragma once

#include "simt.h"

#if defined(__F16C__) && !defined(SIMT_SOFT_HALF)
#define SIMT_F16C 1
#include <immintrin.h>
#endif

namespace ptx {

using Barrier = unsigned long long;

static inline void trap() { simt::trap(719, "trap"); }

// ---- memory

static inline uint4 load_stream(const uint4 *address) {
    if (reinterpret_cast<uintptr_t>(address) % 16) simt::trap(716, "load_stream: expected a 16-byte aligned address");
    return *address;
}
static inline void prefetch_l2(const void *) {}

namespace cpu {
// Whoever reads the same value again polls, and lets others run first.
template <class T>
static inline T load(const T *address) {
    simt::spin();
    return __atomic_load_n(address, __ATOMIC_SEQ_CST);
}
template <class T>
static inline void store(T *address, T value) {
    __atomic_store_n(address, value, __ATOMIC_SEQ_CST);
    simt::progress();
    simt::may_preempt();
}
}  // namespace cpu

static inline unsigned load_acquire(const unsigned *address) { return cpu::load(address); }
static inline int load_acquire(const int *address) { return cpu::load(address); }
static inline void add_release(unsigned *address, unsigned value) {
    __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);
    simt::progress();
    simt::may_preempt();
}
static inline unsigned load_system(const unsigned *address) { return cpu::load(address); }
static inline int load_system(const int *address) { return cpu::load(address); }
static inline void store_system(unsigned *address, unsigned value) { cpu::store(address, value); }
static inline void store_system(int *address, int value) { cpu::store(address, value); }

// ---- numbers

static inline float half_to_float(unsigned short bits) {
#if defined(SIMT_F16C)
    return _cvtsh_ss(bits);
#else
    const unsigned sign = unsigned(bits & 0x8000u) << 16, exponent = bits >> 10 & 0x1fu, fraction = bits & 0x3ffu;
    if (exponent == 0) return simt::bits<float>(sign | simt::bits<unsigned>(float(fraction) * 0x1p-24f));
    if (exponent == 31) return simt::bits<float>(sign | 0x7f800000u | fraction << 13);
    return simt::bits<float>(sign | (exponent + 112) << 23 | fraction << 13);
#endif
}
static inline unsigned short float_to_half(float x) {
    if (!(x == x)) return 0x7fff;  // as the hardware does
#if defined(SIMT_F16C)
    return static_cast<unsigned short>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    const unsigned bits = simt::bits<unsigned>(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x47800000u) return static_cast<unsigned short>(sign | 0x7c00u);
    if (magnitude < 0x38800000u)  // subnormal: let the float addition round
        return static_cast<unsigned short>(
            sign | (simt::bits<unsigned>(simt::bits<float>(magnitude) + 0.5f) - 0x3f000000u));
    const unsigned rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return static_cast<unsigned short>(sign | (rounded - 0x38000000u) >> 13);
#endif
}
static inline float bf16_to_float(unsigned short bits) { return simt::bits<float>(unsigned(bits) << 16); }
static inline unsigned short float_to_bf16(float x) {
    const unsigned bits = simt::bits<unsigned>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
static inline unsigned float2_to_half2(float low, float high) {
    return unsigned(float_to_half(high)) << 16 | float_to_half(low);
}
static inline unsigned float2_to_bf162(float low, float high) {
    return unsigned(float_to_bf16(high)) << 16 | float_to_bf16(low);
}
static inline int dp4a(unsigned a, unsigned b, int sum) {
    for (int i = 0; i < 32; i += 8)
        sum = int(unsigned(sum) + unsigned(int((signed char)(a >> i)) * int((signed char)(b >> i))));
    return sum;
}

static inline float exp2_approx(float x) {
    const float out = exp2f(x);
    return out < 0x1p-126f ? 0.0f : out;  // subnormal results are flushed
}

// ---- copies

static inline void cp_async_16(void *shared, const void *global, bool real = true) {
    simt::async_copy(shared, global, 16, real ? 16 : 0);
}
static inline void cp_async_commit() { simt::async_commit(); }

namespace cpu {
struct CopyWait {
    simt::Site *site;
    template <int groups>
    void after() const {
        if (simt::standing(site)) simt::async_wait(groups);
    }
};
static inline void barrier_sync(simt::Site *site, int id, int threads) {
    simt::named_barrier(site, unsigned(id), unsigned(threads), true);
}
static inline void barrier_arrive(simt::Site *site, int id, int threads) {
    simt::named_barrier(site, unsigned(id), unsigned(threads), false);
}
static inline void grid_dependency_wait(simt::Site *site) {
    if (simt::standing(site)) simt::dependency_wait();
}
}  // namespace cpu

static inline void mbarrier_init(Barrier *barrier, unsigned arrivals) {
    simt::barrier_init(reinterpret_cast<uint64_t *>(barrier), arrivals);
}
static inline void fence_mbarrier_init() { simt::barrier_init_fence(); }
static inline void fence_async() {}
static inline void mbarrier_arrive(Barrier *barrier) {
    simt::barrier_arrive(reinterpret_cast<uint64_t *>(barrier), 1, 0);
}
static inline void mbarrier_arrive_expect(Barrier *barrier, unsigned bytes) {
    simt::barrier_arrive(reinterpret_cast<uint64_t *>(barrier), 1, bytes);
}
static inline bool mbarrier_try_wait(Barrier *barrier, unsigned parity) {
    return simt::barrier_test(reinterpret_cast<uint64_t *>(barrier), parity);
}
static inline void bulk_copy_stream(void *shared, const void *global, unsigned bytes, Barrier *barrier) {
    simt::bulk_copy(shared, global, bytes, reinterpret_cast<uint64_t *>(barrier));
}

// ---- tensor cores

namespace cpu {

struct Rows {
    const void *row;
    unsigned *out;
};

// Lane 8 i + r names row r of matrix i: 8 elements of 16 bits.
template <int count, bool transposed>
static void resolve_ldmatrix(void *const *arguments, unsigned mask) {
    if (mask != 0xffffffffu) simt::trap(719, "ldmatrix: expected all 32 lanes");
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < count; i++) {
            unsigned short pair[2];
            for (int k = 0; k < 2; k++) {
                const int line = lane / 4, place = lane % 4 * 2 + k;
                const void *const from = static_cast<Rows *>(arguments[8 * i + (transposed ? place : line)])->row;
                pair[k] = static_cast<const unsigned short *>(from)[transposed ? line : place];
            }
            static_cast<Rows *>(arguments[lane])->out[i] = unsigned(pair[1]) << 16 | pair[0];
        }
    }
}

template <int count, bool transposed>
static inline void ldmatrix(unsigned *out, const void *row) {
    const bool named = simt::current->lane < 8 * count;
    if (named && reinterpret_cast<uintptr_t>(row) % 16) simt::trap(716, "ldmatrix: expected 16-byte aligned rows");
    Rows own = {row, out};
    simt::collective(0xffffffffu, &own, resolve_ldmatrix<count, transposed>, "ldmatrix");
}

struct Operands {
    const unsigned *a, *b;
    void *sum;
};

static inline double value_s8(unsigned word, int i) { return (signed char)(word >> (8 * i)); }
static inline double value_f16(unsigned word, int i) { return half_to_float((unsigned short)(word >> (16 * i))); }
static inline double value_bf16(unsigned word, int i) { return bf16_to_float((unsigned short)(word >> (16 * i))); }

// The sum of the products in double, rounded once: the hardware's order of adding is not documented.
template <class Sum, int per_word, double value(unsigned, int)>
static void resolve_mma(void *const *arguments, unsigned mask) {
    if (mask != 0xffffffffu) simt::trap(719, "mma: expected all 32 lanes");
    constexpr int depth = 8 * per_word;
    double a[16][depth], b[8][depth];
    for (int lane = 0; lane < 32; lane++) {
        const Operands &own = *static_cast<Operands *>(arguments[lane]);
        const int group = lane / 4, inner = lane % 4;
        for (int i = 0; i < per_word; i++) {
            for (int r = 0; r < 4; r++)
                a[group + r % 2 * 8][inner * per_word + r / 2 * (depth / 2) + i] = value(own.a[r], i);
            for (int r = 0; r < 2; r++) b[group][inner * per_word + r * (depth / 2) + i] = value(own.b[r], i);
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        Sum *const sum = static_cast<Sum *>(static_cast<Operands *>(arguments[lane])->sum);
        for (int r = 0; r < 4; r++) {
            const int row = lane / 4 + r / 2 * 8, column = lane % 4 * 2 + r % 2;
            double products = 0;
            for (int k = 0; k < depth; k++) products += a[row][k] * b[column][k];
            if constexpr (per_word == 4)
                sum[r] = Sum(unsigned(sum[r]) + unsigned(int(products)));
            else
                sum[r] = Sum(double(sum[r]) + products);
        }
    }
}

template <class Sum>
static inline void mma(Sum (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], simt::Resolve resolve) {
    Operands own = {a, b, sum};
    simt::collective(0xffffffffu, &own, resolve, "mma");
}

}  // namespace cpu

static inline void ldmatrix_x4(unsigned (&out)[4], const void *row) { cpu::ldmatrix<4, false>(out, row); }
static inline void ldmatrix_x4_trans(unsigned (&out)[4], const void *row) { cpu::ldmatrix<4, true>(out, row); }
static inline void ldmatrix_x2(unsigned (&out)[2], const void *row) { cpu::ldmatrix<2, false>(out, row); }

static inline void mma_s8(int (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    cpu::mma(sum, a, b, cpu::resolve_mma<int, 4, cpu::value_s8>);
}
static inline void mma_s8(int (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], const int (&start)[4]) {
    for (int i = 0; i < 4; i++) sum[i] = start[i];
    mma_s8(sum, a, b);
}
static inline void mma_f16(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    cpu::mma(sum, a, b, cpu::resolve_mma<float, 2, cpu::value_f16>);
}
static inline void mma_bf16(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    cpu::mma(sum, a, b, cpu::resolve_mma<float, 2, cpu::value_bf16>);
}

// ---- order

static inline void launch_dependents() {}
static inline int thread_index() { return int(threadIdx.x); }
static inline void nanosleep(unsigned) { simt::spin(); }

}  // namespace ptx

// These are written ptx::name(...) and become sites that can be switched off.
#define barrier_sync(id, threads) cpu::barrier_sync(SIMT_SITE("named barrier"), id, threads)
#define barrier_arrive(id, threads) cpu::barrier_arrive(SIMT_SITE("named barrier"), id, threads)
#define grid_dependency_wait() cpu::grid_dependency_wait(SIMT_SITE("grid dependency wait"))
#define cp_async_wait cpu::CopyWait{SIMT_SITE("cp.async wait")}.after
