// A stand-in for cuBLASLt on the emulated device, compiled against the real library's header: the same types, handles and
// numbers, with the product done on the CPU. It refuses what the real one would refuse of what is used here.
#include <cublasLt.h>

#include <dlfcn.h>

#include <cstdint>
#include <cstring>

struct cublasLtContext {
    int live;
};

namespace {

struct Layout {
    cudaDataType type;
    uint64_t rows, columns;
    int64_t stride;
};

struct Operation {
    cublasComputeType_t compute;
    cudaDataType_t scale;
    int32_t transpose_a;
};

struct Preference {
    uint64_t workspace;
};

cublasLtContext context;
int descriptors = 0, products = 0;
bool none = false;                               // no algorithm is found
cublasStatus_t refused = CUBLAS_STATUS_SUCCESS;  // what every product returns

float number(const void *at, long long index, cudaDataType type) {
    if (type == CUDA_R_32F) return static_cast<const float *>(at)[index];
    const uint16_t bits = static_cast<const uint16_t *>(at)[index];
    if (type == CUDA_R_16BF) {
        const uint32_t wide = static_cast<uint32_t>(bits) << 16;
        float value;
        memcpy(&value, &wide, 4);
        return value;
    }
    _Float16 value;
    memcpy(&value, &bits, 2);
    return static_cast<float>(value);
}

template <class T> T *as(void *descriptor) { return static_cast<T *>(descriptor); }

}  // namespace

extern "C" {

int stub_descriptors() { return descriptors; }
int stub_products() { return products; }
void stub_find_none(int on) { none = on; }
void stub_refuse(int status) { refused = static_cast<cublasStatus_t>(status); }

size_t cublasLtGetVersion() { return 130401; }

const char *cublasLtGetStatusString(cublasStatus_t status) {
    return status == CUBLAS_STATUS_NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED" : "CUBLAS_STATUS_INVALID_VALUE";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    ++context.live;
    *handle = &context;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    if (handle != &context || context.live-- <= 0) return CUBLAS_STATUS_INVALID_VALUE;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *made, cublasComputeType_t compute, cudaDataType_t scale) {
    static_assert(sizeof(cublasLtMatmulDescOpaque_t) >= sizeof(Operation), "room");
    auto *memory = new cublasLtMatmulDescOpaque_t();
    *as<Operation>(memory) = {compute, scale, CUBLAS_OP_N};
    *made = memory;
    ++descriptors;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t to, cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes) {
    if (attribute != CUBLASLT_MATMUL_DESC_TRANSA || bytes != sizeof(int32_t)) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&as<Operation>(to)->transpose_a, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t it) {
    delete it;
    --descriptors;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *made, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t stride) {
    static_assert(sizeof(cublasLtMatrixLayoutOpaque_t) >= sizeof(Layout), "room");
    if (static_cast<uint64_t>(stride) < rows) return CUBLAS_STATUS_INVALID_VALUE;
    auto *memory = new cublasLtMatrixLayoutOpaque_t();
    *as<Layout>(memory) = {type, rows, columns, stride};
    *made = memory;
    ++descriptors;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t it) {
    delete it;
    --descriptors;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *made) {
    *made = new cublasLtMatmulPreferenceOpaque_t();
    ++descriptors;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t to,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void *value,
                                                    size_t bytes) {
    if (attribute != CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES || bytes != 8) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&as<Preference>(to)->workspace, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t it) {
    delete it;
    --descriptors;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int *found) {
    const auto &op = *as<Operation>(operation);
    const auto &left = *as<Layout>(a), &right = *as<Layout>(b), &out = *as<Layout>(d);
    const bool turned = op.transpose_a == CUBLAS_OP_T;
    const uint64_t rows = turned ? left.columns : left.rows, inner = turned ? left.rows : left.columns;
    const bool fits = inner == right.rows && rows == out.rows && right.columns == out.columns;
    if (handle != &context || !fits || wanted < 1 || c != d) return CUBLAS_STATUS_INVALID_VALUE;
    if (op.compute != CUBLAS_COMPUTE_32F || op.scale != CUDA_R_32F || left.type != right.type || out.type != CUDA_R_32F)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (none) {
        *found = 0;
        return CUBLAS_STATUS_SUCCESS;
    }
    results[0] = {};
    results[0].algo.data[0] = 0x5eed;
    results[0].workspaceSize = as<Preference>(preference)->workspace;
    results[0].state = CUBLAS_STATUS_SUCCESS;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
                              const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
    const auto &left = *as<Layout>(a_layout), &right = *as<Layout>(b_layout), &out = *as<Layout>(d_layout);
    if (handle != &context || algo->data[0] != 0x5eed || !workspace || workspace_bytes == 0 || !stream)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (refused != CUBLAS_STATUS_SUCCESS) return refused;
    const float kept = *static_cast<const float *>(beta);
    if (c != d || c_layout != d_layout) return CUBLAS_STATUS_INVALID_VALUE;
    // The product comes after what is in the stream, and is over when this returns.
    const auto synchronize = reinterpret_cast<int (*)(void *)>(dlsym(RTLD_DEFAULT, "cuStreamSynchronize"));
    if (!synchronize || synchronize(stream)) return CUBLAS_STATUS_EXECUTION_FAILED;
    const bool turned = as<Operation>(operation)->transpose_a == CUBLAS_OP_T;
    for (uint64_t column = 0; column < out.columns; ++column)
        for (uint64_t row = 0; row < out.rows; ++row) {
            double sum = 0.0;
            for (uint64_t k = 0; k < right.rows; ++k) {
                const uint64_t at = turned ? row * left.stride + k : k * left.stride + row;
                sum += static_cast<double>(number(a, at, left.type)) * number(b, column * right.stride + k, right.type);
            }
            float &to = static_cast<float *>(d)[column * out.stride + row];
            sum *= *static_cast<const float *>(alpha);
            to = static_cast<float>(kept == 0.0f ? sum : sum + kept * to);  // with 0, what was there is not read
        }
    ++products;
    return CUBLAS_STATUS_SUCCESS;
}
}
