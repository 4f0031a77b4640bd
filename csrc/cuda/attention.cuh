// What the attention kernels share: their arguments, and how a block finds its work.
#pragma once

#include "cuda/tiles.cuh"

namespace pvt_kernels::cuda {

constexpr float kLog2e = 1.4426950408889634f;

struct AttentionSizes {
  int queries, keys, heads, head_dim;
  float scale;
};

// A (B, N, heads, d) tensor with adjacent channels.
struct Heads {
  const void* data;
  std::int64_t batch_stride, token_stride, head_stride;
};

// Blocks are numbered along the tiles of a head, then along heads and batch.
struct Work {
  int tile, batch_head, batch, head;

  __device__ Work(unsigned block, unsigned tiles, unsigned heads)
      : tile(block % tiles),
        batch_head(block / tiles),
        batch(batch_head / heads),
        head(batch_head % heads) {}
};

template <class T>
__device__ __forceinline__ Rows<T> head_rows(const Heads& t, const Work& work, int count,
                                             int channels) {
  const auto* data = static_cast<const T*>(t.data);
  return {data + work.batch * t.batch_stride + work.head * t.head_stride, t.token_stride, count,
          channels};
}

// Where a row of a contiguous (B, N, heads, d) tensor begins.
__device__ __forceinline__ std::int64_t row_offset(const Work& work, int tokens, int token,
                                                   const AttentionSizes& s) {
  return ((std::int64_t{work.batch} * tokens + token) * s.heads + work.head) * s.head_dim;
}

// Where a query's number is in a contiguous (B, heads, N) tensor.
__device__ __forceinline__ std::int64_t query_offset(const Work& work, int query,
                                                     const AttentionSizes& s) {
  return std::int64_t{work.batch_head} * s.queries + query;
}

// Writes a warp's rows of a head, from `first_token` on, to such a tensor.
template <int kRows, int D, class T>
__device__ __forceinline__ void write_head_rows(const T* tile, void* tensor, const Work& work,
                                                int tokens, int first_token,
                                                const AttentionSizes& s) {
  T* first = static_cast<T*>(tensor) + row_offset(work, tokens, first_token, s);
  const int stride = s.heads * s.head_dim;
  write_rows<T, kRows, D>(tile, [&](int row, int column) {
    return first_token + row < tokens && column < s.head_dim
               ? first + std::int64_t{row} * stride + column
               : nullptr;
  });
}

}  // namespace pvt_kernels::cuda
