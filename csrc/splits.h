// Into how many parts long sums are split among blocks, on GPUs: for every backend.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pvt_kernels {

// The blocks of a kernel, each of which takes the steps of a sum one after the other.
struct LongSums {
  std::int64_t wave;         // how many blocks the GPU holds at once
  std::int64_t blocks;       // before they are split
  std::int64_t steps;        // of each of them
  double multiply_adds;      // of one step of one block
  double numbers;            // of the partial results of one split of all blocks, in fp32
  double operations_a_byte;  // that the GPU computes while its memory moves a byte
};

// By what each number of parts costs, in steps: every wave of blocks takes its steps, and some more
// to begin and end; and each split's partial results are written, and read once more. With more
// than two waves nothing is gained that weighs as much.
inline std::int64_t splits_of(const LongSums& sums) {
  // a block's first tiles' way from memory, and its result's back
  constexpr std::int64_t kOverhead = 10, kMostWaves = 2;
  const auto parts = [](std::int64_t size, std::int64_t part) { return (size + part - 1) / part; };
  // what goes to memory and back while every block of a wave does one step
  const double step_bytes = sums.wave * 2 * sums.multiply_adds / sums.operations_a_byte;
  const double partial = 2 * sizeof(float) * sums.numbers / step_bytes;
  const std::int64_t most =
      std::min(sums.steps, parts(kMostWaves * sums.wave, std::max<std::int64_t>(1, sums.blocks)));
  const auto cost = [&](std::int64_t splits) {
    const std::int64_t waves = parts(sums.blocks * splits, sums.wave);
    return waves * (parts(sums.steps, splits) + kOverhead) + splits * partial;
  };
  std::int64_t best = 1;
  double least = cost(best);
  for (std::int64_t splits = 2; splits <= most; ++splits)
    if (const double now = cost(splits); now < least) {
      best = splits;
      least = now;
    }
  return best;
}

}  // namespace pvt_kernels
