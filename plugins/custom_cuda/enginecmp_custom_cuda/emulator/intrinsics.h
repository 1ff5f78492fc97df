// Arithmetic, conversions, atomics and fences by CUDA's names.
#pragma once

#include <cmath>
#include <cstring>

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
// C libraries declare a function of this name.
static inline float simt_rsqrtf(float x) { return 1.0f / sqrtf(x); }
#define rsqrtf simt_rsqrtf
static inline unsigned int __float_as_uint(float x) { return simt::bits<unsigned int>(x); }
static inline float __uint_as_float(unsigned int x) { return simt::bits<float>(x); }

// Conversions to integers saturate, and NaN becomes 0 (cvt of the PTX ISA).
static inline int __float2int_rn(float x) {
    const float rounded = nearbyintf(x);
    if (!(rounded == rounded)) return 0;
    if (rounded >= 2147483648.0f) return 2147483647;
    if (rounded < -2147483648.0f) return -2147483647 - 1;
    return int(rounded);
}

// ---- integers
static inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }

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
#define SIMT_ATOMICS(T)                                                                                         \
    static inline T atomicMax(T *p, T v) { return simt::atomic(p, [v](T old) { return old < v ? v : old; }); }  \
    static inline T atomicAdd(T *p, T v) { return simt::atomic(p, [v](T old) { return (T)(old + v); }); }       \
    static inline T atomicExch(T *p, T v) { return simt::atomic(p, [v](T) { return v; }); }
SIMT_ATOMICS(int)
SIMT_ATOMICS(unsigned int)
SIMT_ATOMICS(unsigned long long)
#undef SIMT_ATOMICS

static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
