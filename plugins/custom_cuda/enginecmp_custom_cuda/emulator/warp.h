// Barriers and shuffles. Lanes wait for the lanes in the mask; lanes that left the kernel count as arrived.
#pragma once

#include <cstring>

#include "sites.h"

#define __syncthreads() ::simt::block_barrier(SIMT_SITE("syncthreads"))
#define __syncwarp(...) ::simt::warp_barrier(SIMT_SITE("syncwarp") __VA_OPT__(, ) __VA_ARGS__)

namespace simt {

struct Exchange {
    uint64_t value;
    unsigned source;
    uint64_t result;
};

static inline void resolve_exchange(void *const *arguments, unsigned mask) {
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        Exchange &own = *static_cast<Exchange *>(arguments[__builtin_ctz(rest)]);
        // A lane outside the mask has no value to give: what CUDA leaves undefined is poison here.
        own.result = mask >> own.source & 1 ? static_cast<Exchange *>(arguments[own.source])->value : ~uint64_t(0);
    }
}

template <class T>
static inline T exchange(unsigned mask, T value, unsigned source, const char *what) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    Exchange own = {0, source, 0};
    memcpy(&own.value, &value, sizeof value);
    collective(mask, &own, resolve_exchange, what);
    memcpy(&value, &own.result, sizeof value);
    return value;
}

}  // namespace simt

template <class T>
static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const unsigned lane = simt::current->lane, segment = lane & ~unsigned(width - 1);
    return simt::exchange(mask, value, segment | (unsigned(source) & unsigned(width - 1)), "shfl_sync");
}

template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    const unsigned lane = simt::current->lane, last = lane | unsigned(width - 1), other = lane ^ unsigned(lanes);
    return simt::exchange(mask, value, other <= last ? other : lane, "shfl_xor_sync");
}
