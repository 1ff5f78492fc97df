// Reads every weight of a packed matrix by the kernels' own address formula.
#include "packing.cuh"

struct ReadParams {
    Matrix w;
    float *weights;  // [rows][columns]
};

KERNEL(64, 1, read_all, ReadParams) {
    for (int i = blockIdx.x * 64 + threadIdx.x; i < p.w.rows * p.w.columns; i += gridDim.x * 64) {
        p.weights[i] = packing::weight_at(p.w, i / p.w.columns, i % p.w.columns);
    }
}
