// Names: of errors, and of the functions that callers look up.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "driver.h"

namespace {

struct ErrorText {
    CUresult code;
    const char *name, *text;
};

const ErrorText errors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {401, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {716, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {720, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", "too many blocks in cooperative launch"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

// Callers get an entry of its own for every name that is not here, so that a call can say which it was.
constexpr int most_missing = 1024, entry_bytes = 16;
const char *missing_names[most_missing];
bool missing_told[most_missing];
int missing_count = 0;

}  // namespace

extern "C" {
__attribute__((visibility("hidden"))) extern const char simt_missing_entries[];
__attribute__((visibility("hidden"), used)) CUresult simt_missing(int index);
}

CUresult simt_missing(int index) {
    if (simt::verbose() && !missing_told[index]) {
        missing_told[index] = true;
        fprintf(stderr, "custom_cuda emulator: %s is not supported\n", missing_names[index]);
    }
    return CUDA_ERROR_NOT_SUPPORTED;
}

// Entry i calls simt_missing(i).
#if defined(__x86_64__)
#define SIMT_ENTRY "movl $simt_index, %edi\njmp simt_missing\n"
#elif defined(__aarch64__)
#define SIMT_ENTRY "mov w0, #simt_index\nb simt_missing\n"
#endif
#if defined(SIMT_ENTRY)
asm(".text\n.balign 16\n.hidden simt_missing_entries\nsimt_missing_entries:\n.set simt_index, 0\n"
    ".rept 1024\n.balign 16\n" SIMT_ENTRY ".set simt_index, simt_index + 1\n.endr\n");
#endif

namespace {

void *stand_in(const char *name) {
    static std::mutex mutex;
    std::lock_guard<std::mutex> lock(mutex);
    int index = 0;
    while (index < missing_count && strcmp(missing_names[index], name) != 0) index++;
    if (index == missing_count) {
        if (missing_count < most_missing - 1) missing_count++;
        missing_names[index] = strdup(name);
    }
#if defined(SIMT_ENTRY)
    return const_cast<char *>(simt_missing_entries + index * entry_bytes);
#else
    return nullptr;  // callers know what that means
#endif
}

}  // namespace

API cuGetErrorName(CUresult code, const char **name) {
    for (const ErrorText &error : errors)
        if (error.code == code) return *name = error.name, CUDA_SUCCESS;
    *name = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}

API cuGetErrorString(CUresult code, const char **text) {
    for (const ErrorText &error : errors)
        if (error.code == code) return *text = error.text, CUDA_SUCCESS;
    *text = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}

// Callers ask for "cuMemAlloc" and get the newest form that is here.
API cuGetProcAddress_v2(const char *symbol, void **function, int, unsigned long long, int *status) {
    if (!symbol || !function) return CUDA_ERROR_INVALID_VALUE;
    Dl_info self;
    void *library = nullptr;
    if (dladdr(reinterpret_cast<void *>(&cuGetProcAddress_v2), &self))
        library = dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    *function = nullptr;
    for (const char *suffix : {"_v3", "_v2", ""}) {
        if (!*function && library) *function = dlsym(library, (std::string(symbol) + suffix).c_str());
    }
    if (library) dlclose(library);
    if (!*function) *function = stand_in(symbol);
    if (status) *status = 0;
    return CUDA_SUCCESS;
}

API cuGetProcAddress(const char *symbol, void **function, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(symbol, function, version, flags, nullptr);
}

// NVRTC asks the driver of its process for private tables, and takes no answer for one.
API cuGetExportTable(const void **table, const void *) {
    if (table) *table = nullptr;
    return CUDA_ERROR_NOT_FOUND;
}
