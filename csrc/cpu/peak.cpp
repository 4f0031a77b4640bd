// The rate of the multiply-adds that products are made of. Compiled once for each code path.
#include "cpu/peak.h"

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "cpu/code_path.h"
#include "cpu/product.h"
#include "cpu/threads.h"

namespace pvt_kernels::cpu {
namespace {

constexpr int kSteps = 4096, kRounds = 5;
constexpr double kSeconds = 0.02;

#if defined(PVT_KERNELS_BF16_ALONE)
using Arithmetic = ArithmeticFor<BF16>::type;
#else
using Arithmetic = Floats;
#endif

// kSteps times a register block of multiply-adds, each waiting for the one of the step before.
// Returns the operations.
template <class A>
std::int64_t run_steps() {
  if constexpr (kInTiles<A>) {
    const Registers<A> registers;
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    tile_zero<4>(), tile_zero<5>();
    for (int step = 0; step < kSteps; ++step) {
      tile_multiply_add<0, 4, 5>();
      tile_multiply_add<1, 4, 5>();
      tile_multiply_add<2, 4, 5>();
      tile_multiply_add<3, 4, 5>();
    }
    return std::int64_t{kSteps} * 4 * kTileSize * kTileSize * kTileSize * 2 * A::kValues;
  } else {
    constexpr int kSums = kRows * kBlockVectors;
    // 1 + x / 2, which goes to 2; a product of constants would be computed before the loop
    const Vec weight = broadcast(0.5f), one = broadcast(1.0f);
    Vec x[kSums];
    for (Vec& value : x) value = one;
    for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 32
      for (int i = 0; i < kSums; ++i) x[i] = A::multiply_add(one, weight, x[i]);
    }
    Vec total = {};
    for (Vec value : x) total += value;
    volatile float used = sum(total);
    (void)used;
    return std::int64_t{kSteps} * kSums * kLanes * 2 * A::kValues;
  }
}

}  // namespace

namespace PVT_KERNELS_CODE_PATH {

double peak_rate(int threads) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
  };
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    double operations = 0;
    const Clock::time_point begin = Clock::now();
#pragma omp parallel num_threads(threads) reduction(+ : operations)
    while (since(begin) < kSeconds) operations += run_steps<Arithmetic>();
    best = std::max(best, operations / since(begin));
  }
  return best;
}

}  // namespace PVT_KERNELS_CODE_PATH
}  // namespace pvt_kernels::cpu
