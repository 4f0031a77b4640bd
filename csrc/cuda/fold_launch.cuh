#pragma once

#include "cuda/fold.cuh"
#include "cuda/runtime.h"

namespace pvt_kernels::cuda {

template <class Atom>
void launch_folds(const Folds& folds, void* stream) {
  const Fold &first = folds.first, &second = folds.second;
  const std::int64_t threads = (first.sums * first.count + second.sums * second.count) / 4;
  launch(fold_kernel<Atom>, ceil_div(threads, kThreads), kThreads, 0, stream, folds);
}

}  // namespace pvt_kernels::cuda
