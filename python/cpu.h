#pragma once

#include <pybind11/pybind11.h>

// The submodule _C.cpu: the CPU kernels on raw pointers, which pvt_kernels/backends/cpu calls.
void bind_cpu(pybind11::module_ m);
