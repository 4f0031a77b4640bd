// Tiles of a matrix in global memory on their way to shared memory.
#pragma once

#include "cuda/arch/accumulator.cuh"
#include "cuda/arch/ptx.cuh"

namespace pvt_kernels::cuda {

// A block's dynamic shared memory.
extern __shared__ __align__(128) unsigned char shared_memory[];

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;

__host__ __device__ constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// Rows of `columns` adjacent values: one head of one image, for one. Those beyond either end
// count as zeros.
template <class T>
struct Rows {
  const T* data;
  std::int64_t stride, count;
  int columns;

  // Where 16 bytes begin; null where there are zeros.
  __device__ __forceinline__ const T* at(std::int64_t row, std::int64_t column) const {
    return row < count && column < columns ? data + row * stride + column : nullptr;
  }
  // Any address that may be read.
  __device__ __forceinline__ const T* valid() const { return data; }
};

// One tile of kRows x kColumns, copied by all threads of the block in two steps, between which they
// compute: from compute capability 8.0 on the hardware moves it, before that it waits in
// registers. A source gives the address of each 16 bytes.
template <class T, int kRows, int kColumns, bool kAsync, int kThreads = cuda::kThreads>
class TileCopy {
 public:
  using Type = T;
  static constexpr bool kIsAsync = kAsync;
  static constexpr int kStride = padded_stride<T>(kColumns);
  static constexpr int kSize = kRows * kStride;

  template <class Source>
  __device__ __forceinline__ void start(const Source& source, std::int64_t first_row,
                                        std::int64_t first_column, T* tile) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const T* address = source.at(first_row + row(i), first_column + column(i));
      if constexpr (kAsync) {
        ptx::copy_async(tile + offset(i), address, source.valid());
      } else {
        staged_[i] = address ? ptx::load_global(reinterpret_cast<const uint4*>(address))
                             : make_uint4(0, 0, 0, 0);
      }
    }
  }

  // The tile holds the values once the block has met at the next barrier.
  __device__ __forceinline__ void finish(T* tile) {
    if constexpr (kAsync) {
      ptx::wait_for_copies();
    } else {
#pragma unroll
      for (int i = 0; i < kCopies; ++i)
        ptx::store_shared(reinterpret_cast<uint4*>(tile + offset(i)), staged_[i]);
    }
  }

 private:
  static constexpr int kVector = 16 / sizeof(T);
  static constexpr int kPerRow = kColumns / kVector;
  static constexpr int kCopies = kRows * kPerRow / kThreads;
  static_assert(kCopies * kThreads == kRows * kPerRow, "the threads have equal shares");

  static __device__ __forceinline__ int row(int i) {
    return (i * kThreads + static_cast<int>(threadIdx.x)) / kPerRow;
  }
  static __device__ __forceinline__ int column(int i) {
    return (i * kThreads + static_cast<int>(threadIdx.x)) % kPerRow * kVector;
  }
  static __device__ __forceinline__ int offset(int i) { return row(i) * kStride + column(i); }

  uint4 staged_[kAsync ? 1 : kCopies];
};

// Two tiles that are used together, fetched while those before them are used.
template <class First, class Second>
class TilePairs {
  using T = typename First::Type;
  // the hardware writes into a buffer that nobody reads
  static constexpr int kBuffers = First::kIsAsync ? 2 : 1;
  static constexpr int kPairSize = First::kSize + Second::kSize;

 public:
  static constexpr int kSize = kBuffers * kPairSize;

  __device__ explicit TilePairs(T* shared) : shared_(shared) {}

  // Starts to fetch pair number `pair`: from each source the tile at a row and a column.
  template <class FirstSource, class SecondSource>
  __device__ __forceinline__ void fetch(std::int64_t pair, const FirstSource& first,
                                        std::int64_t first_row, std::int64_t first_column,
                                        const SecondSource& second, std::int64_t second_row,
                                        std::int64_t second_column) {
    first_.start(first, first_row, first_column, buffer(pair));
    second_.start(second, second_row, second_column, buffer(pair) + First::kSize);
  }

  // Waits until the pair fetched last is there, and until every thread is done with that before.
  __device__ __forceinline__ void wait(std::int64_t pair) {
    if (!First::kIsAsync) __syncthreads();
    first_.finish(buffer(pair));
    second_.finish(buffer(pair) + First::kSize);
    __syncthreads();
  }

  __device__ __forceinline__ const T* first(std::int64_t pair) const { return buffer(pair); }
  __device__ __forceinline__ const T* second(std::int64_t pair) const {
    return buffer(pair) + First::kSize;
  }

 private:
  __device__ __forceinline__ T* buffer(std::int64_t pair) const {
    return shared_ + pair % kBuffers * kPairSize;
  }

  T* shared_;
  First first_;
  Second second_;
};

// Writes a warp's 16 rows from shared memory to global memory, 16 bytes at a time, to the address
// that to(row, column) gives; null where nothing is to be written.
template <class T, int kColumns, class To>
__device__ __forceinline__ void write_rows(const T* tile, To to) {
  constexpr int kVector = 16 / sizeof(T), kPerRow = kColumns / kVector;
  constexpr int kCopies = kWarpRows * kPerRow / kWarpSize;
  static_assert(kCopies * kWarpSize == kWarpRows * kPerRow, "the lanes have equal shares");
#pragma unroll
  for (int i = 0; i < kCopies; ++i) {
    const int index = i * kWarpSize + lane_index();
    const int row = index / kPerRow, column = index % kPerRow * kVector;
    const uint4 values = ptx::load_shared(
        reinterpret_cast<const uint4*>(tile + row * padded_stride<T>(kColumns) + column));
    if (T* address = to(row, column)) ptx::store_global(reinterpret_cast<uint4*>(address), values);
  }
}

}  // namespace pvt_kernels::cuda
