// How the attention kernels are cut, by the atom that multiplies and the width of a head. What is
// here of a V100 is plain C++, for which its atoms are names.
#pragma once

#include <type_traits>

#include "cuda/arch/warp.h"

namespace pvt_kernels::cuda {

struct Sm70;
struct Simt70;
struct Simt75;
struct Simt80;

// A block of kWarps_ keeps kWarpRows_ rows for each, of queries or of keys, while kStep_ rows of
// the other pass by at a time. Its threads have registers for kBlocks_ blocks on a multiprocessor.
template <int kWarpRows_, int kWarps_, int kStep_, int kBlocks_>
struct Tiling {
  static constexpr int kWarpRows = kWarpRows_, kWarps = kWarps_, kStep = kStep_, kBlocks = kBlocks_;
  static constexpr int kRows = kWarpRows * kWarps, kThreads = kWarps * kWarpSize;
  static constexpr bool kWithDq = false;
};

// The kernel of dk and dv computes dq too: a block of kWarps keeps kRows keys while kStep queries
// pass by at a time, and its warps share all of either, so that each has 32 rows by 32 columns of
// the products.
struct JointTiling {
  static constexpr int kRows = 64, kStep = 64, kWarps = 4, kBlocks = 2;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr bool kWithDq = true;
};

// As many rows pass by as leave room for a second block of a head dim up to 64 in the registers and
// the shared memory of compute capability 7.5 (64 KB) and 8.6 (100 KB), where tiles are buffered
// twice. 128 has to do with one block.
template <class Atom, int D>
struct Config {
  using Forward = Tiling<16, 4, D <= (Atom::kCopiesAsync ? 32 : 64) ? 64 : 32, 2>;
  using Dq = Tiling<16, 4, D <= 64 ? 32 : 16, 2>;
  using DkDv = Dq;
};

// On compute capability 7.0 shared memory returns one register a clock for the whole
// multiprocessor, and 16 rows need 2.5 for a product that takes 2 clocks. Two bands of rows share
// what a warp loads of the rows that pass by. A head dim of 128 has no registers for them.
template <int D>
struct Config<Sm70, D> {
  static constexpr int kWarpRows = D <= 64 ? 32 : 16;
  using Forward = Tiling<kWarpRows, 4, D <= 64 ? 64 : 32, 2>;
  using Dq = Tiling<kWarpRows, 4, D <= 64 ? 32 : 16, 2>;
  using DkDv = Dq;
};

// fp32, of which a multiprocessor multiplies as much in half a clock as shared memory returns in
// one. 32 rows a warp leave 48 KB room for 24 keys 64 wide. Those 128 wide have no registers for
// them, nor for dq beside dk and dv.
template <int D, int kWarps>
struct SimtConfig {
  using Forward = Tiling<D <= 64 ? 32 : 16, 4, D <= 32 ? 64 : D <= 64 ? 24 : 16, 2>;
  using Dq = Tiling<16, kWarps, 1024 / D, 2>;
  using DkDv = std::conditional_t<D <= 64, JointTiling, Dq>;
};
template <int D>
struct Config<Simt70, D> : SimtConfig<D, 4> {};
// four warps' wide rows take 78 KB in the backward, and compute capability 7.5 has 64
template <int D>
struct Config<Simt75, D> : SimtConfig<D, D <= 64 ? 4 : 2> {};
template <int D>
struct Config<Simt80, D> : SimtConfig<D, 4> {};

}  // namespace pvt_kernels::cuda
