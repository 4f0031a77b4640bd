#pragma once

#include "cuda/fold.cuh"
#include "cuda/runtime.h"

namespace pvt_kernels::cuda {

template <class Atom>
void launch_fold(const Fold& fold, void* stream) {
  launch(fold_kernel<Atom>, ceil_div(fold.sums * fold.count, 4 * kThreads), kThreads, 0, stream,
         fold);
}

}  // namespace pvt_kernels::cuda
