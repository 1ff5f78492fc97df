// Device memory: every allocation is a mapping of its own. Its end lies at a page that faults; what is left between is
// red zones, checked when the host waits for the device. Fresh memory is all ones: NaN and -1.
#include <sys/mman.h>

#include <cstdio>
#include <cstring>

#include "driver.h"

namespace simt {

namespace {
constexpr size_t alignment = 256;
// Poisoning takes real memory; beyond this only both ends are.
constexpr size_t poison_whole = size_t(256) << 20, poison_end = size_t(16) << 20;

size_t up(size_t value, size_t to) { return (value + to - 1) / to * to; }
}  // namespace

CUresult Memory::allocate(size_t bytes, bool pinned, char **address) {
    if (bytes == 0 || !address) return CUDA_ERROR_INVALID_VALUE;
    std::lock_guard<std::mutex> lock(mutex_);
    if (!pinned && (bytes > limit || used_ + up(bytes, alignment) > limit)) return CUDA_ERROR_OUT_OF_MEMORY;
    const size_t data = up(bytes, alignment), mapped = up(data + alignment, page) + 2 * page;
    void *memory =
        mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    Allocation made = {static_cast<char *>(memory), mapped, nullptr, bytes, pinned};
    made.address = made.mapping + mapped - page - data;
    mprotect(made.mapping, page, PROT_NONE);
    mprotect(made.mapping + mapped - page, page, PROT_NONE);
    memset(made.mapping + page, red_zone, size_t(made.address - made.mapping) - page);
    memset(made.address + bytes, red_zone, data - bytes);
    if (bytes <= poison_whole) {
        memset(made.address, 0xff, bytes);
    } else {
        memset(made.address, 0xff, poison_end);
        memset(made.address + bytes - poison_end, 0xff, poison_end);
    }
    allocations_[reinterpret_cast<uintptr_t>(made.address)] = made;
    if (!pinned) used_ += data;
    *address = made.address;
    return CUDA_SUCCESS;
}

CUresult Memory::release(const void *address, bool pinned) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto at = allocations_.find(reinterpret_cast<uintptr_t>(address));
    if (at == allocations_.end() || at->second.pinned != pinned) return CUDA_ERROR_INVALID_VALUE;
    munmap(at->second.mapping, at->second.mapping_bytes);
    if (!pinned) used_ -= up(at->second.bytes, alignment);
    allocations_.erase(at);
    return CUDA_SUCCESS;
}

void Memory::clear() {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto &[start, one] : allocations_) munmap(one.mapping, one.mapping_bytes);
    allocations_.clear();
    used_ = 0;
}

const Allocation *Memory::find(const void *address) const {
    auto at = allocations_.upper_bound(reinterpret_cast<uintptr_t>(address));
    return at == allocations_.begin() ? nullptr : &std::prev(at)->second;
}

bool Memory::holds(const void *address, size_t bytes) const {
    std::lock_guard<std::mutex> lock(mutex_);
    const Allocation *const one = find(address);
    if (!one) return false;
    const size_t offset = size_t(static_cast<const char *>(address) - one->address);
    return offset <= one->bytes && bytes <= one->bytes - offset;
}

bool Memory::is_pinned(const void *address) const {
    std::lock_guard<std::mutex> lock(mutex_);
    const Allocation *const one = find(address);
    return one && one->pinned && static_cast<const char *>(address) < one->address + one->bytes;
}

bool Memory::damaged(std::string &how) const {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto &[start, one] : allocations_) {
        const auto *first = reinterpret_cast<const unsigned char *>(one.mapping + page);
        const auto *data = reinterpret_cast<const unsigned char *>(one.address);
        const auto *last = reinterpret_cast<const unsigned char *>(one.mapping + one.mapping_bytes - page);
        for (const unsigned char *at = first; at < last; at++) {
            if (at == data) at += one.bytes;
            if (at == last || *at == red_zone) continue;
            char text[160];
            snprintf(text, sizeof text, "byte %td of an allocation of %zu bytes at %p was written", at - data,
                     one.bytes, static_cast<const void *>(one.address));
            how = text;
            return true;
        }
    }
    return false;
}

std::string Memory::describe(const void *address) const {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return "";
    const Allocation *const one = find(address);
    const char *const at = static_cast<const char *>(address);
    char text[160];
    if (one && at < one->mapping + one->mapping_bytes) {
        snprintf(text, sizeof text, ", byte %td of an allocation of %zu bytes", at - one->address, one->bytes);
        return text;
    }
    const auto next = allocations_.upper_bound(reinterpret_cast<uintptr_t>(address));
    if (next != allocations_.end() && at >= next->second.mapping) {
        snprintf(text, sizeof text, ", %td bytes before an allocation of %zu bytes", next->second.address - at,
                 next->second.bytes);
        return text;
    }
    return ", in no allocation";
}

}  // namespace simt
