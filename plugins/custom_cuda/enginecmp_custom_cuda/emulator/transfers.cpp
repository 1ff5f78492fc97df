// Calls that give memory and move bytes.
#include <cstring>

#include "driver.h"

using simt::driver;
using simt::Operation;

namespace {

char *at(CUdeviceptr address) { return reinterpret_cast<char *>(address); }
bool held(CUdeviceptr address, size_t bytes) { return driver().context.memory.holds(at(address), bytes); }

// A call without a stream waits until it is done; it must not be made while another stream is captured.
CUresult now(std::unique_lock<std::recursive_mutex> &lock, std::function<CUresult()> work) {
    if (simt::unsafe_in_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    simt::Stream *const stream = &driver().context.null_stream;
    const CUresult error = simt::submit(stream, Operation{std::move(work), {}});
    lock.unlock();
    return error ? error : simt::synchronize(stream);
}

CUresult later(void *handle, std::function<CUresult()> work) {
    CUresult error = CUDA_SUCCESS;
    simt::Stream *const stream = simt::stream_of(handle, &error);
    return stream ? simt::submit(stream, Operation{std::move(work), {}}) : error;
}

std::function<CUresult()> move(void *to, const void *from, size_t bytes) {
    return [=]() -> CUresult {
        memmove(to, from, bytes);
        return CUDA_SUCCESS;
    };
}

// A later write to pageable memory does not reach a copy that has begun, one to pinned memory may.
std::function<CUresult()> move_in(void *to, const void *from, size_t bytes) {
    if (driver().context.memory.holds(from, bytes)) return move(to, from, bytes);
    const auto *const source = static_cast<const unsigned char *>(from);
    auto staged = std::make_shared<std::vector<unsigned char>>(source, source + bytes);
    return [=]() -> CUresult {
        memcpy(to, staged->data(), bytes);
        return CUDA_SUCCESS;
    };
}

template <class T>
std::function<CUresult()> set(CUdeviceptr address, T value, size_t count) {
    return [=]() -> CUresult {
        for (size_t i = 0; i < count; i++) reinterpret_cast<T *>(address)[i] = value;
        return CUDA_SUCCESS;
    };
}

}  // namespace

API cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    ENTER(device_context);
    if (simt::unsafe_in_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    char *made = nullptr;
    const CUresult error = driver().context.memory.allocate(bytes, false, &made);
    if (!error) *address = reinterpret_cast<CUdeviceptr>(made);
    return error;
}

API cuMemFree_v2(CUdeviceptr address) {
    ENTER(device_context);
    if (address == 0) return CUDA_SUCCESS;
    if (simt::unsafe_in_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    lock.unlock();
    if (const CUresult lost = simt::synchronize(nullptr)) return lost;
    return driver().context.memory.release(at(address), false);
}

API cuMemGetInfo_v2(size_t *free, size_t *total) {
    ENTER(device_context);
    const simt::Memory &memory = driver().context.memory;
    *total = memory.limit;
    *free = memory.limit > memory.used() ? memory.limit - memory.used() : 0;
    return CUDA_SUCCESS;
}

API cuMemHostAlloc(void **address, size_t bytes, unsigned) {
    ENTER(device_context);
    char *made = nullptr;
    const CUresult error = driver().context.memory.allocate(bytes, true, &made);
    if (!error) *address = made;
    return error;
}

API cuMemAllocHost_v2(void **address, size_t bytes) { return cuMemHostAlloc(address, bytes, 0); }

API cuMemFreeHost(void *address) {
    ENTER(device_context);
    lock.unlock();
    if (const CUresult lost = simt::synchronize(nullptr)) return lost;
    return driver().context.memory.release(address, true);
}

API cuMemHostGetDevicePointer_v2(CUdeviceptr *device, void *host, unsigned) {
    ENTER(device_context);
    if (!driver().context.memory.is_pinned(host)) return CUDA_ERROR_INVALID_VALUE;
    *device = reinterpret_cast<CUdeviceptr>(host);
    return CUDA_SUCCESS;
}

API cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) {
    ENTER(device_context);
    if (!held(to, bytes) || !from) return CUDA_ERROR_INVALID_VALUE;
    return now(lock, move(at(to), from, bytes));
}

API cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
    ENTER(device_context);
    if (!held(from, bytes) || !to) return CUDA_ERROR_INVALID_VALUE;
    return now(lock, move(to, at(from), bytes));
}

API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    ENTER(device_context);
    if (!held(from, bytes) || !held(to, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return now(lock, move(at(to), at(from), bytes));
}

API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, void *stream) {
    ENTER(device_context);
    if (!held(to, bytes) || !from) return CUDA_ERROR_INVALID_VALUE;
    return later(stream, move_in(at(to), from, bytes));
}

API cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, void *stream) {
    ENTER(device_context);
    if (!held(from, bytes) || !to) return CUDA_ERROR_INVALID_VALUE;
    return later(stream, move(to, at(from), bytes));
}

// The driver's own takes any two addresses; here only those that a kernel could use.
API cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, void *stream) {
    ENTER(device_context);
    if (!held(from, bytes) || !held(to, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return later(stream, move(at(to), at(from), bytes));
}

API cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) {
    ENTER(device_context);
    if (!held(to, count)) return CUDA_ERROR_INVALID_VALUE;
    return now(lock, set<unsigned char>(to, value, count));
}

API cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t count) {
    ENTER(device_context);
    if (!held(to, 4 * count) || to % 4) return CUDA_ERROR_INVALID_VALUE;
    return now(lock, set<unsigned>(to, value, count));
}

API cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, void *stream) {
    ENTER(device_context);
    if (!held(to, count)) return CUDA_ERROR_INVALID_VALUE;
    return later(stream, set<unsigned char>(to, value, count));
}

