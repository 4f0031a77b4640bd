// A matrix product of any depth, in chains of sums so short that rounding errors do not grow.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/few_columns.h"
#include "cpu/product.h"

namespace pvt_kernels::cpu {
namespace {

// out = left times right, or out += that with `add`, in chains of kChain units. Whole vectors of
// columns are written, as by multiply().
template <class Left>
void multiply_chains(const Left& left, std::int64_t rows,
                     const typename Left::Arithmetic::Unit* right, std::int64_t right_stride,
                     std::int64_t columns, float* out, std::int64_t out_stride, bool add = false) {
  if constexpr (kInTiles<typename Left::Arithmetic>) {
    // what tiles sum was rounded to bf16, beside which the chain's errors are nothing
    multiply(left, rows, right, right_stride, columns, WriteOrAdd{out, out_stride, add});
  } else {
    const std::int64_t rest = columns % kLanes;
    const bool few = 0 < rest && rest <= kFewColumns && few_columns_pay(left, rows);
    const std::int64_t full = few ? columns - rest : columns;
    FewColumns<typename Left::Arithmetic> few_columns;
    if (few) few_columns.gather(right + full, right_stride, left.depth, rest);
    // all chains of a block of rows, which are read once, from beginning to end
    for (std::int64_t row = 0; row < rows; row += Left::kBlock) {
      const std::int64_t count = std::min(Left::kBlock, rows - row);
      const Left block = left.from_row(row);
      float* to = out + row * out_stride;
      for (std::int64_t k = 0; k < block.depth; k += kChain) {
        const Left chain = block.part(k, std::min(kChain, block.depth - k));
        const auto* part = right + k * right_stride;
        if (k > 0 || add)
          multiply(chain, count, part, right_stride, full, Add{to, out_stride});
        else
          multiply(chain, count, part, right_stride, full, Write{to, out_stride});
      }
      if (few && rest == 1) multiply_few<1>(block, count, few_columns, to + full, out_stride, add);
      if (few && rest == 2) multiply_few<2>(block, count, few_columns, to + full, out_stride, add);
    }
  }
}

}  // namespace
}  // namespace pvt_kernels::cpu
