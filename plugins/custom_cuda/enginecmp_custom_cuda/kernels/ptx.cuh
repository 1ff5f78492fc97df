// Every instruction that CUDA C++ has no name for, in namespace ptx: inline PTX on CUDA, the same meaning in C++ on the
// CPU (ptx_cpu.h, whose functions take the same arguments).
//
// Facts: NVIDIA, "PTX ISA" (instruction semantics; fragment layouts in "Warp-level matrix instructions"). What an
// architecture lacks is composed of what it has; where that is impossible, the function says so and traps.
#pragma once

#include "kernel.h"

#if defined(__CUDACC__)
#include "ptx_cuda.cuh"
#else
#include "../emulator/ptx_cpu.h"
#endif
