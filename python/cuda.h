#pragma once

#include <pybind11/pybind11.h>

// The submodule _C.cuda: the CUDA kernels on raw pointers, which pvt_kernels/backends/cuda calls.
void bind_cuda(pybind11::module_ m);
