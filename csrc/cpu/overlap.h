// What the tiles of AMX compute while the same thread's vectors compute something else. The two
// take turns as the code has them: the processor runs a product's instructions and those that come
// before its results are asked for at the same time.
#pragma once

#include <cstdint>

#include "cpu/product.h"

namespace pvt_kernels::cpu {
namespace {

// The vectors' work on a column of tiles has `kParts` parts, and beside each one begins and
// completes a product.
struct Nothing {
  static constexpr int kParts = 1;
  void begin(int, std::int64_t) const {}
  void complete(int, std::int64_t) const {}
};

// `first` of the column at hand, then `second` of one that is kBehind before it.
template <class First, class Second, std::int64_t kBehind>
struct TwoProducts {
  static constexpr int kParts = 2;
  First first;
  Second second;

  void begin(int part, std::int64_t column) const {
    if (part == 0)
      first.begin(column);
    else if (column >= kBehind)
      second.begin(column - kBehind);
  }

  void complete(int part, std::int64_t column) const {
    if (part == 0)
      first.complete(column);
    else if (column >= kBehind)
      second.complete(column - kBehind);
  }
};

// A product added to a bias of each row, if there is one.
template <class Left>
struct BiasedColumnProduct {
  ColumnProduct<Left, WriteOrAdd> product;
  const float* bias;

  void begin(std::int64_t column) const {
    const WriteOrAdd& to = product.finish;
    for (std::int64_t row = 0; to.add && row < product.rows; ++row)
      store(to.out + row * to.stride + column, broadcast(bias[row]));
    product.begin(column);
  }

  void complete(std::int64_t column) const { product.complete(column); }
};

}  // namespace
}  // namespace pvt_kernels::cpu
