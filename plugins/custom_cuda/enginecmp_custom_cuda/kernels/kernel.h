// The first include of every kernel file: one way to write kernels for CUDA and for the CPU.
//
//     KERNEL(threads, blocks_per_sm, name, ParamsType) { ... p.field ... }
//
// A kernel takes exactly one struct, by value, named p; its blocks have one dimension and `threads` threads. On CUDA
// the launch bounds let the compiler use 65536 / (threads * blocks_per_sm) registers. Elsewhere a record of the kernel
// is exported, which the stand-in driver (emulator/) looks up.
#pragma once

#if defined(__CUDACC__)

#define KERNEL(threads, blocks_per_sm, name, ParamsType) \
    extern "C" __global__ void __launch_bounds__(threads, blocks_per_sm) name(const __grid_constant__ ParamsType p)

// Shared memory whose size the launch gives, 128-byte aligned, once a kernel.
extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[];
#define DYNAMIC_SHARED(T, name) T *const name = reinterpret_cast<T *>(dynamic_shared_bytes)

// A statement that waits for others, marked so that tests on the CPU can leave it out: REMOVABLE("why", statement).
#define REMOVABLE(kind, ...) \
    do {                     \
        __VA_ARGS__;         \
    } while (0)

#else

#include "../emulator/simt.h"

#define KERNEL(threads, blocks_per_sm, name, ParamsType)                                                             \
    static void name(const ParamsType &p);                                                                           \
    static void simt_run_##name(const void *params) { name(*static_cast<const ParamsType *>(params)); }              \
    extern "C" SIMT_EXPORT const simt::KernelInfo simt_kernel_##name;                                                \
    const simt::KernelInfo simt_kernel_##name = {                                                                    \
        SIMT_ABI, #name, simt_run_##name, sizeof(ParamsType), alignof(ParamsType), threads, blocks_per_sm};          \
    static void name(const ParamsType &p)

#define DYNAMIC_SHARED(T, name) T *const name = static_cast<T *>(::simt::dynamic_shared())

#define REMOVABLE(kind, ...)                                  \
    do {                                                      \
        if (::simt::standing(SIMT_SITE(kind))) { __VA_ARGS__; } \
    } while (0)

#endif
