#pragma once

#include "cuda/fold.cuh"
#include "cuda/runtime.h"

namespace pvt_kernels::cuda {

// Of folds of these sizes.
template <class Atom>
Kernel<Folds> fold_kernel_for(const std::string& name, const Folds& folds) {
  const Fold &first = folds.first, &second = folds.second;
  const std::int64_t threads = (first.sums * first.count + second.sums * second.count) / 4;
  return {name, fold_kernel<Atom>, ceil_div(threads, kThreads), kThreads, 0};
}

}  // namespace pvt_kernels::cuda
