// Makes a CUDA C++ kernel compile as C++ for the CPU: the language, the built-in variables, functions and types.
//
// The module is loaded by the stand-in driver in this folder. A __shared__ variable is one per OS thread, and every
// block runs on one OS thread.
#pragma once

#include "intrinsics.h"
#include "sites.h"
#include "threads.h"
#include "types.h"
#include "warp.h"

#define __device__
#define __host__
#define __global__
#define __constant__ static const
#define __shared__ static __thread
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (::simt::current->index)
#define blockIdx (*::simt::current->block_index)
#define blockDim (*::simt::current->block_size)
#define gridDim (*::simt::current->grid_size)
#define warpSize 32
