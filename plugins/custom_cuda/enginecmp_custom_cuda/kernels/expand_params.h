// What the host hands to expand.cu by value. Python's mirror is engine/prefill/cublaslt.py.
#pragma once
#include "params.h"

struct ExpandParams {
    Matrix w;
    unsigned short *out;  // [rows][columns], half or bf16
};
