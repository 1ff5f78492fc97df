// What a kernel module and the driver know of each other: threads, sites of barriers, kernels.
//
// A CUDA thread is a fiber. All fibers of a block run on one OS thread, one at a time, and give way only inside the
// functions declared here. A module is one translation unit, compiled to a shared object; the functions are the
// driver's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "types.h"

#define SIMT_ABI 4
#define SIMT_EXPORT __attribute__((visibility("default")))

namespace simt {

// A place in the source where threads wait for each other. It can be switched off while the program runs.
struct Site {
    const char *file;
    int line;
    const char *kind;
    Site *next;
    bool removed;
    bool used;  // some thread has come by
};

struct Block;

struct Thread {
    uint3 index;
    unsigned lane;
    const uint3 *block_index;
    const dim3 *block_size;
    const dim3 *grid_size;
    Block *block;
};

// What the driver reads of a module, by dlsym: simt_module, and simt_kernel_<name> for every kernel.
struct ModuleInfo {
    unsigned abi;
    Site **sites;
    void *(*shared)();  // some byte of this thread's shared variables: makes sure that they exist
};

struct KernelInfo {
    unsigned abi;
    const char *name;
    void (*run)(const void *params);
    size_t params_bytes;
    size_t params_alignment;
    int threads;
    int blocks_per_multiprocessor;
};

// Called by the last lane to arrive, for all lanes of the mask; arguments of other lanes are null.
using Resolve = void (*)(void *const *arguments, unsigned mask);

#pragma GCC visibility push(default)
extern __thread Thread *current __attribute__((tls_model("initial-exec")));

void block_barrier(Site *site);
void named_barrier(Site *site, unsigned id, unsigned threads, bool wait);
void warp_barrier(Site *site, unsigned mask = 0xffffffffu);
// Wait for every lane of the mask that has not exited, then let the last one compute for all.
void collective(unsigned mask, void *argument, Resolve resolve, const char *what);

void spin();         // this thread polls memory and found nothing: let the others go on first
void progress();     // this thread changed memory that others may poll
void may_preempt();  // with a seeded order: perhaps another thread's turn
[[noreturn]] void trap(int code, const char *message);

void *dynamic_shared();

// Copies that happen as late as they may: their target is poisoned first, and filled when somebody waits for it.
void async_copy(void *shared, const void *global, unsigned bytes, unsigned valid_bytes);
void async_commit();
void async_wait(unsigned groups_left);
void bulk_copy(void *shared, const void *global, unsigned bytes, uint64_t *barrier);
void barrier_init(uint64_t *barrier, unsigned count);
void barrier_init_fence();
void barrier_arrive(uint64_t *barrier, unsigned count, unsigned expect_bytes);
bool barrier_test(uint64_t *barrier, unsigned parity);
void dependency_wait();
#pragma GCC visibility pop

// Reached: tells whether the site is still there.
static inline bool standing(Site *site) {
    __atomic_store_n(&site->used, true, __ATOMIC_RELAXED);
    return !__atomic_load_n(&site->removed, __ATOMIC_RELAXED);
}

}  // namespace simt
