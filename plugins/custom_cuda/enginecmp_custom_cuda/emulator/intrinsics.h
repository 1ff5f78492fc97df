// Arithmetic, conversions, atomics and fences by CUDA's names.
#pragma once

#include <cmath>
#include <cstring>
#include <ctime>

#include "threads.h"

namespace simt {
template <class To, class From>
static inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
}  // namespace simt

// ---- minimum and maximum; a NaN loses, as in fminf
#define SIMT_MIN_MAX(T)                                       \
    static inline T min(T a, T b) { return b < a ? b : a; }   \
    static inline T max(T a, T b) { return a < b ? b : a; }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned int)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline unsigned int min(unsigned int a, int b) { return min(a, unsigned(b)); }
static inline unsigned int min(int a, unsigned int b) { return min(unsigned(a), b); }
static inline unsigned int max(unsigned int a, int b) { return max(a, unsigned(b)); }
static inline unsigned int max(int a, unsigned int b) { return max(unsigned(a), b); }

// ---- floating point
// C libraries declare functions of some of these names.
static inline float simt_rsqrtf(float x) { return 1.0f / sqrtf(x); }
#define rsqrtf simt_rsqrtf
#define __expf expf
#define __logf logf
#define __sinf sinf
#define __cosf cosf
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fsub_rn(float x, float y) { return x - y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }

static inline int __float_as_int(float x) { return simt::bits<int>(x); }
static inline unsigned int __float_as_uint(float x) { return simt::bits<unsigned int>(x); }
static inline float __int_as_float(int x) { return simt::bits<float>(x); }
static inline float __uint_as_float(unsigned int x) { return simt::bits<float>(x); }
static inline long long __double_as_longlong(double x) { return simt::bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return simt::bits<double>(x); }

// Conversions to integers saturate, and NaN becomes 0 (cvt of the PTX ISA).
static inline int simt_float_to_int(float rounded) {
    if (!(rounded == rounded)) return 0;
    if (rounded >= 2147483648.0f) return 2147483647;
    if (rounded < -2147483648.0f) return -2147483647 - 1;
    return int(rounded);
}
static inline int __float2int_rn(float x) { return simt_float_to_int(nearbyintf(x)); }
static inline int __float2int_rz(float x) { return simt_float_to_int(truncf(x)); }
static inline int __float2int_rd(float x) { return simt_float_to_int(floorf(x)); }
static inline int __float2int_ru(float x) { return simt_float_to_int(ceilf(x)); }
static inline unsigned int __float2uint_rn(float x) {
    const float rounded = nearbyintf(x);
    if (!(rounded > 0)) return 0;
    return rounded >= 4294967296.0f ? 4294967295u : unsigned(rounded);
}
static inline float __int2float_rn(int x) { return float(x); }
static inline float __uint2float_rn(unsigned int x) { return float(x); }

// ---- integers
static inline int __popc(unsigned int x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned int __brev(unsigned int x) {
    unsigned int out = 0;
    for (int bit = 0; bit < 32; bit++) out |= (x >> bit & 1u) << (31 - bit);
    return out;
}
static inline unsigned int __umulhi(unsigned int a, unsigned int b) {
    return unsigned((unsigned long long)a * b >> 32);
}
static inline int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline unsigned int __byte_perm(unsigned int a, unsigned int b, unsigned int selector) {
    const unsigned long long both = (unsigned long long)b << 32 | a;
    unsigned int out = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned int nibble = selector >> (4 * i) & 0xf;
        unsigned int byte = unsigned(both >> (8 * (nibble & 7))) & 0xff;
        if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;
        out |= byte << (8 * i);
    }
    return out;
}
static inline unsigned int __funnelshift_r(unsigned int low, unsigned int high, unsigned int shift) {
    return unsigned(((unsigned long long)high << 32 | low) >> (shift & 31));
}
static inline unsigned int __funnelshift_l(unsigned int low, unsigned int high, unsigned int shift) {
    return unsigned(((unsigned long long)high << 32 | low) << (shift & 31) >> 32);
}
static inline unsigned int __vsubss4(unsigned int a, unsigned int b) {
    unsigned int out = 0;
    for (int i = 0; i < 32; i += 8) {
        const int difference = int((signed char)(a >> i)) - int((signed char)(b >> i));
        out |= (unsigned(max(-128, min(127, difference))) & 0xff) << i;
    }
    return out;
}

template <class T>
static inline T __ldg(const T *address) { return *address; }
template <class T>
static inline T __ldcg(const T *address) { return *address; }
template <class T>
static inline void __stcg(T *address, T value) { *address = value; }

// ---- atomics: integers of 32 and 64 bits. There are no floating-point ones: every output has one owner.
// A failed attempt to change memory is polling, and lets others run; a change is progress.
namespace simt {
template <class T, class Change>
static inline T atomic(T *address, Change change) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics work on 4 or 8 bytes");
    may_preempt();
    T old = __atomic_load_n(address, __ATOMIC_RELAXED);
    T wanted = change(old);
    while (!__atomic_compare_exchange_n(address, &old, wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        wanted = change(old);
    if (wanted == old)
        spin();
    else
        progress();
    return old;
}
}  // namespace simt

// The types are exactly CUDA's: what compiles here compiles there.
#define SIMT_EXTREMES(T)                                                                                        \
    static inline T atomicMax(T *p, T v) { return simt::atomic(p, [v](T old) { return old < v ? v : old; }); }  \
    static inline T atomicMin(T *p, T v) { return simt::atomic(p, [v](T old) { return v < old ? v : old; }); }
#define SIMT_ATOMICS(T)                                                                                         \
    SIMT_EXTREMES(T)                                                                                            \
    static inline T atomicAdd(T *p, T v) { return simt::atomic(p, [v](T old) { return (T)(old + v); }); }       \
    static inline T atomicExch(T *p, T v) { return simt::atomic(p, [v](T) { return v; }); }                     \
    static inline T atomicOr(T *p, T v) { return simt::atomic(p, [v](T old) { return (T)(old | v); }); }        \
    static inline T atomicAnd(T *p, T v) { return simt::atomic(p, [v](T old) { return (T)(old & v); }); }       \
    static inline T atomicXor(T *p, T v) { return simt::atomic(p, [v](T old) { return (T)(old ^ v); }); }       \
    static inline T atomicCAS(T *p, T expected, T v) {                                                          \
        return simt::atomic(p, [expected, v](T old) { return old == expected ? v : old; });                     \
    }
SIMT_ATOMICS(int)
SIMT_ATOMICS(unsigned int)
SIMT_ATOMICS(unsigned long long)
SIMT_EXTREMES(long long)
static inline int atomicSub(int *p, int v) { return atomicAdd(p, (int)-(unsigned)v); }
static inline unsigned int atomicSub(unsigned int *p, unsigned int v) { return atomicAdd(p, -v); }
#undef SIMT_EXTREMES
#undef SIMT_ATOMICS

static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

static inline void __nanosleep(unsigned int) { simt::spin(); }
static inline void __trap() { simt::trap(719, "trap"); }
static inline long long clock64() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}
