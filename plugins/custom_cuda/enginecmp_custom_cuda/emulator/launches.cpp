// Calls about modules, functions and launches.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "driver.h"

using simt::driver;
using simt::Function;
using simt::Launch;

namespace {

enum : int { attribute_cooperative = 2, attribute_cluster = 4, attribute_overlap = 6 };

struct LaunchAttribute {
    int id;
    char pad[4];
    union {
        char bytes[64];
        int number;
        unsigned cluster[3];
    } value;
};
static_assert(sizeof(LaunchAttribute) == 72, "CUlaunchAttribute");

struct LaunchConfig {
    unsigned grid[3], block[3], shared_bytes;
    void *stream;
    LaunchAttribute *attributes;
    unsigned attribute_count;
};
static_assert(sizeof(LaunchConfig) == 56, "CUlaunchConfig");

CUresult refuse(const Function &function, CUresult code, const char *why) {
    if (simt::verbose())
        fprintf(stderr, "custom_cuda emulator: launch of %s refused: %s\n", function.kernel->name, why);
    return code;
}

unsigned occupancy(const Function &function, unsigned threads, size_t shared_bytes) {
    const size_t shared = function.static_shared + shared_bytes;
    if (threads == 0 || threads > unsigned(function.kernel->threads) || shared > simt::optin_shared) return 0;
    const unsigned by_shared = unsigned(simt::multiprocessor_shared / (shared + 1024));
    return std::min(32u, std::min(2048 / ((threads + 31) / 32 * 32), by_shared));
}

// Kernel parameters come as pointers to each, or as one buffer with its size.
CUresult take_params(const Function &function, void **pointers, void **extra, Launch &launch) {
    const size_t wanted = function.kernel->params_bytes;
    const void *source = pointers ? pointers[0] : nullptr;
    if (extra) {
        size_t bytes = wanted;
        for (int i = 0; extra[i] != nullptr; i += 2) {
            if (extra[i] == reinterpret_cast<void *>(1)) source = extra[i + 1];
            if (extra[i] == reinterpret_cast<void *>(2)) bytes = *static_cast<size_t *>(extra[i + 1]);
        }
        if (bytes != wanted) return refuse(function, CUDA_ERROR_INVALID_VALUE, "size of parameters");
    }
    if (!source) return refuse(function, CUDA_ERROR_INVALID_VALUE, "no parameters");
    launch.params = std::make_shared<std::vector<ulonglong2>>((wanted + 15) / 16);
    memcpy(static_cast<void *>(launch.params->data()), source, wanted);
    return CUDA_SUCCESS;
}

CUresult launch_kernel(const LaunchConfig &config, void *handle, void **pointers, void **extra, bool cooperative) {
    Function *const function = static_cast<Function *>(handle);
    bool known = false;
    for (simt::Module *module : driver().context.modules)
        for (const auto &[name, one] : module->functions) known |= one.get() == function;
    if (!known) return CUDA_ERROR_INVALID_HANDLE;
    CUresult error = CUDA_SUCCESS;
    simt::Stream *const stream = simt::stream_of(config.stream, &error);
    if (!stream) return error;

    Launch launch = {};
    launch.function = function;
    launch.grid = dim3(config.grid[0], config.grid[1], config.grid[2]);
    launch.block = dim3(config.block[0], config.block[1], config.block[2]);
    launch.shared_bytes = config.shared_bytes;
    launch.cooperative = cooperative;
    for (unsigned i = 0; i < config.attribute_count; i++) {
        const LaunchAttribute &attribute = config.attributes[i];
        if (attribute.id == attribute_cooperative) launch.cooperative |= attribute.value.number != 0;
        if (attribute.id == attribute_overlap) launch.overlap = attribute.value.number != 0;
        if (attribute.id == attribute_cluster &&
            attribute.value.cluster[0] * attribute.value.cluster[1] * attribute.value.cluster[2] > 1)
            return refuse(*function, CUDA_ERROR_NOT_SUPPORTED, "clusters");
    }
    const size_t threads = size_t(config.block[0]) * config.block[1] * config.block[2];
    const size_t blocks = size_t(config.grid[0]) * config.grid[1] * config.grid[2];
    if (threads == 0 || threads > 1024) return refuse(*function, CUDA_ERROR_INVALID_VALUE, "threads of a block");
    if (blocks == 0 || blocks > 0xffffffffu || config.grid[0] > 0x7fffffffu || config.grid[1] > 65535 ||
        config.grid[2] > 65535)
        return refuse(*function, CUDA_ERROR_INVALID_VALUE, "grid");
    if (threads > size_t(function->kernel->threads))
        return refuse(*function, CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "more threads than the kernel's bound");
    if (config.shared_bytes > function->dynamic_shared ||
        config.shared_bytes + function->static_shared > simt::optin_shared)
        return refuse(*function, CUDA_ERROR_INVALID_VALUE, "more shared memory than the function may have");
    if (launch.cooperative) {
        const size_t each = occupancy(*function, unsigned(threads), config.shared_bytes);
        if (blocks > driver().settings.multiprocessors * each)
            return refuse(*function, CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE, "blocks do not fit at once");
    }
    if ((error = take_params(*function, pointers, extra, launch))) return error;
    return simt::submit(stream, simt::Operation{nullptr, std::move(launch)});
}

}  // namespace

API cuModuleLoadData(void **handle, const void *image) {
    ENTER(device_context);
    std::unique_ptr<simt::Module> module;
    if (const CUresult error = simt::load_module(image, module)) return error;
    *handle = module.get();
    driver().context.modules.insert(module.release());
    return CUDA_SUCCESS;
}

API cuModuleLoadDataEx(void **handle, const void *image, unsigned, int *, void **) {
    return cuModuleLoadData(handle, image);
}

API cuModuleUnload(void *handle) {
    ENTER(device_context);
    simt::Module *const module = static_cast<simt::Module *>(handle);
    if (!driver().context.modules.count(module)) return CUDA_ERROR_INVALID_HANDLE;
    lock.unlock();
    const CUresult lost = simt::synchronize(nullptr);
    lock.lock();
    if (lost) return lost;
    driver().context.modules.erase(module);
    delete module;
    return CUDA_SUCCESS;
}

API cuModuleGetFunction(void **function, void *handle, const char *name) {
    ENTER(device_context);
    simt::Module *const module = static_cast<simt::Module *>(handle);
    if (!driver().context.modules.count(module)) return CUDA_ERROR_INVALID_HANDLE;
    Function *found = nullptr;
    if (const CUresult error = simt::find_function(*module, name, &found)) return error;
    *function = found;
    return CUDA_SUCCESS;
}

// Numbers of CUfunction_attribute. There are no registers here: what the launch bounds allow is told.
API cuFuncGetAttribute(int *value, int attribute, void *handle) {
    ENTER(device_context);
    const Function &function = *static_cast<Function *>(handle);
    switch (attribute) {
        case 0: *value = function.kernel->threads; break;
        case 1: *value = int(function.static_shared); break;
        case 4: {
            const int bound = function.kernel->threads * std::max(1, function.kernel->blocks_per_multiprocessor);
            *value = std::min(255, 65536 / bound / 8 * 8);
            break;
        }
        case 5: case 6: *value = 90; break;
        case 8: *value = int(function.dynamic_shared); break;
        case 9: *value = -1; break;
        default: *value = 0;
    }
    return CUDA_SUCCESS;
}

API cuFuncSetAttribute(void *handle, int attribute, int value) {
    ENTER(device_context);
    Function &function = *static_cast<Function *>(handle);
    if (attribute == 8) {
        if (value < 0 || size_t(value) + function.static_shared > simt::optin_shared) return CUDA_ERROR_INVALID_VALUE;
        function.dynamic_shared = size_t(value);
        return CUDA_SUCCESS;
    }
    return attribute == 9 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API cuFuncGetParamInfo(void *handle, size_t index, size_t *offset, size_t *bytes) {
    ENTER(device_context);
    if (index > 0) return CUDA_ERROR_INVALID_VALUE;
    if (offset) *offset = 0;
    if (bytes) *bytes = static_cast<Function *>(handle)->kernel->params_bytes;
    return CUDA_SUCCESS;
}

API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *handle, int threads, size_t shared_bytes) {
    ENTER(device_context);
    *blocks = int(occupancy(*static_cast<Function *>(handle), unsigned(threads), shared_bytes));
    return CUDA_SUCCESS;
}

API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, void *handle, int threads, size_t shared_bytes,
                                                         unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, handle, threads, shared_bytes);
}

API cuLaunchKernelEx(const LaunchConfig *config, void *function, void **params, void **extra) {
    ENTER(device_context);
    return launch_kernel(*config, function, params, extra, false);
}

API cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared_bytes, void *stream, void **params, void **extra) {
    ENTER(device_context);
    const LaunchConfig config = {{gx, gy, gz}, {bx, by, bz}, shared_bytes, stream, nullptr, 0};
    return launch_kernel(config, function, params, extra, false);
}

API cuLaunchCooperativeKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                              unsigned bz, unsigned shared_bytes, void *stream, void **params) {
    ENTER(device_context);
    const LaunchConfig config = {{gx, gy, gz}, {bx, by, bz}, shared_bytes, stream, nullptr, 0};
    return launch_kernel(config, function, params, nullptr, true);
}
