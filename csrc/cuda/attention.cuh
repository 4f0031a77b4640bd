// What the attention kernels share: their arguments, the sizes of their tiles, how a block finds
// its work.
#pragma once

#include <type_traits>

#include "cuda/arch/simt.cuh"
#include "cuda/launch.h"
#include "cuda/tiles.cuh"

namespace pvt_kernels::cuda {

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// Rows of queries that a block of the forward keeps, 16 for each warp.
constexpr int kBlockRows = kWarps * kWarpRows;

// Warps of a block of the backward, which keeps two tiles of 16 rows for each. Wide fp32 rows of
// four take 78 KB, and compute capability 7.5 has 64.
template <class Atom>
__host__ __device__ constexpr int backward_warps(int D) {
  return std::is_same_v<Atom, Simt75> && D > 64 ? 2 : kWarps;
}

// Rows of keys or queries that pass by at a time: as many as leave room for a second block of a
// head dim up to 64 in the registers and the shared memory of a V100 (96 KB), and for one of
// compute capability 8.6 (100 KB), where tiles are buffered twice. 128 has to do with one block.
template <class Atom>
__host__ __device__ constexpr int forward_step(int D) {
  if (sizeof(typename Atom::Type) == 4) return 2048 / D;
  return D <= (Atom::kCopiesAsync ? 32 : 64) ? 64 : 32;
}
template <class T>
__host__ __device__ constexpr int backward_step(int D) {
  if (sizeof(T) == 4) return 1024 / D;
  return D <= 64 ? 32 : 16;
}

struct AttentionSizes {
  std::int64_t queries, keys;
  int heads, head_dim;
  float scale;
};

// Blocks are numbered along the tiles of a head, then along heads and batch.
struct Work {
  std::int64_t tile, batch_head, batch;
  int head;

  __device__ Work(std::int64_t tiles, int heads)
      : tile(blockIdx.x % tiles),
        batch_head(blockIdx.x / tiles),
        batch(batch_head / heads),
        head(static_cast<int>(batch_head % heads)) {}
};

template <class T>
__device__ __forceinline__ Rows<T> head_rows(const pvtk_heads& t, const Work& work,
                                             std::int64_t count, int channels) {
  const auto* data = static_cast<const T*>(t.data);
  return {data + work.batch * t.batch_stride + work.head * t.head_stride, t.token_stride, count,
          channels};
}

// Where a row of a contiguous (B, N, heads, d) tensor begins.
__device__ __forceinline__ std::int64_t row_offset(const Work& work, std::int64_t tokens,
                                                   std::int64_t token, const AttentionSizes& s) {
  return ((work.batch * tokens + token) * s.heads + work.head) * s.head_dim;
}

// Writes a warp's rows of a head, from `first_token` on, to such a tensor.
template <int D, class T>
__device__ __forceinline__ void write_head_rows(const T* tile, void* tensor, const Work& work,
                                                std::int64_t tokens, std::int64_t first_token,
                                                const AttentionSizes& s) {
  T* first = static_cast<T*>(tensor) + row_offset(work, tokens, first_token, s);
  const std::int64_t stride = std::int64_t{s.heads} * s.head_dim;
  write_rows<T, D>(tile, [&](int row, int column) {
    return first_token + row < tokens && column < s.head_dim ? first + row * stride + column
                                                             : nullptr;
  });
}

}  // namespace pvt_kernels::cuda
