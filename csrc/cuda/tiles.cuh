// Tiles of a matrix in global memory on their way to shared memory.
#pragma once

#include "cuda/arch/accumulator.cuh"
#include "cuda/arch/ptx.cuh"

namespace pvt_kernels::cuda {

// A block's dynamic shared memory.
extern __shared__ __align__(128) unsigned char shared_memory[];

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;

template <class A, class B>
__host__ __device__ constexpr auto ceil_div(A a, B b) {
  return (a + b - 1) / b;
}

// Rows of `columns` adjacent values: one head of one image, for one. Those beyond either end
// count as zeros.
template <class T>
struct Rows {
  const T* data;
  std::int64_t stride;
  int count, columns;

  // 16 bytes of each row from one on.
  struct Column {
    const T* data;
    std::int64_t stride;
    int count;

    // Where those begin that are `down` rows further; null where there are zeros.
    __device__ __forceinline__ const T* at(int down) const {
      return down < count ? data + down * stride : nullptr;
    }
  };

  __device__ __forceinline__ Column from(int row, int column) const {
    return {data + row * stride + column, stride, column < columns ? count - row : 0};
  }
  // Any address that may be read.
  __device__ __forceinline__ const T* valid() const { return data; }
};

// One tile of kRows x kColumns, copied by all threads of the block in two steps, between which they
// compute: from compute capability 8.0 on the hardware moves it, before that it waits in
// registers. A source gives the addresses of a column's 16 bytes, of which each thread has one.
template <class T, int kRows, int kColumns, bool kAsync, int kThreads = cuda::kThreads>
class TileCopy {
 public:
  using Type = T;
  static constexpr bool kIsAsync = kAsync;
  static constexpr int kStride = padded_stride<T>(kColumns);
  static constexpr int kSize = kRows * kStride;

  template <class Source>
  __device__ __forceinline__ void start(const Source& source, int first_row, int first_column,
                                        T* tile) {
    const auto column = source.from(first_row + row(0), first_column + this->column());
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const T* address = column.at(i * kRowsAtOnce);
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

  // Changes the sign of what waits in registers.
  __device__ __forceinline__ void negate() {
    constexpr std::uint32_t kSigns = sizeof(T) == 4 ? 0x80000000 : 0x80008000;
#pragma unroll
    for (uint4& values : staged_)
      values = {values.x ^ kSigns, values.y ^ kSigns, values.z ^ kSigns, values.w ^ kSigns};
  }

  // f(row, sum) for each row, once: of its products with the other's row, both in registers.
  template <class F>
  __device__ __forceinline__ void for_each_product(const TileCopy& other, F f) const {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      Vector<T> a, b;
      memcpy(&a, &staged_[i], sizeof(a));
      memcpy(&b, &other.staged_[i], sizeof(b));
      float sum = 0.0f;
#pragma unroll
      for (int k = 0; k < kVector; ++k) sum += to_float(a.x[k]) * to_float(b.x[k]);
      // the lanes of a row are neighbours
#pragma unroll
      for (int step = kPerRow / 2; step > 0; step /= 2)
        sum += __shfl_xor_sync(0xffffffff, sum, step);
      if (column() == 0) f(row(i), sum);
    }
  }

 private:
  static constexpr int kVector = 16 / sizeof(T);
  static constexpr int kPerRow = kColumns / kVector;
  static constexpr int kRowsAtOnce = kThreads / kPerRow;
  static constexpr int kCopies = kRows / kRowsAtOnce;
  static_assert(kThreads % kPerRow == 0 && kCopies * kRowsAtOnce == kRows,
                "the threads have equal shares, each of one column");

  static __device__ __forceinline__ int row(int i) {
    return i * kRowsAtOnce + static_cast<int>(threadIdx.x) / kPerRow;
  }
  static __device__ __forceinline__ int column() {
    return static_cast<int>(threadIdx.x) % kPerRow * kVector;
  }
  static __device__ __forceinline__ int offset(int i) { return row(i) * kStride + column(); }

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
  __device__ __forceinline__ void fetch(int pair, const FirstSource& first, int first_row,
                                        int first_column, const SecondSource& second,
                                        int second_row, int second_column) {
    first_.start(first, first_row, first_column, buffer(pair));
    second_.start(second, second_row, second_column, buffer(pair) + First::kSize);
  }

  // Waits until the pair fetched last is there, and until every thread is done with that before.
  __device__ __forceinline__ void wait(int pair) {
    if (!First::kIsAsync) __syncthreads();
    first_.finish(buffer(pair));
    second_.finish(buffer(pair) + First::kSize);
    __syncthreads();
  }

  __device__ __forceinline__ const T* first(int pair) const { return buffer(pair); }
  __device__ __forceinline__ const T* second(int pair) const { return buffer(pair) + First::kSize; }

 private:
  __device__ __forceinline__ T* buffer(int pair) const {
    return shared_ + pair % kBuffers * kPairSize;
  }

  T* shared_;
  First first_;
  Second second_;
};

// Of 16 bytes of values each.
template <class T>
__device__ __forceinline__ uint4 sum_of(uint4 first, uint4 second) {
  Quad<T> a[4 / sizeof(T)], b[4 / sizeof(T)];
  memcpy(a, &first, sizeof(a));
  memcpy(b, &second, sizeof(b));
#pragma unroll
  for (int i = 0; i < 4 / static_cast<int>(sizeof(T)); ++i) {
    const float4 x = to_float(a[i]), y = to_float(b[i]);
    a[i] = round_quad<T>(make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w));
  }
  memcpy(&first, a, sizeof(first));
  return first;
}

// Writes a warp's rows from shared memory to global memory, 16 bytes at a time, to the address that
// to(row, column) gives; null where nothing is to be written. With kAdds adds them to what is
// there.
template <class T, int kRows, int kColumns, bool kAdds = false, class To>
__device__ __forceinline__ void write_rows(const T* tile, To to) {
  constexpr int kVector = 16 / sizeof(T), kPerRow = kColumns / kVector;
  constexpr int kCopies = kRows * kPerRow / kWarpSize;
  static_assert(kCopies * kWarpSize == kRows * kPerRow, "the lanes have equal shares");
#pragma unroll
  for (int i = 0; i < kCopies; ++i) {
    const int index = i * kWarpSize + lane_index();
    const int row = index / kPerRow, column = index % kPerRow * kVector;
    uint4 values = ptx::load_shared(
        reinterpret_cast<const uint4*>(tile + row * padded_stride<T>(kColumns) + column));
    if (T* address = to(row, column)) {
      if constexpr (kAdds)
        values = sum_of<T>(values, ptx::load_own(reinterpret_cast<const uint4*>(address)));
      ptx::store_global(reinterpret_cast<uint4*>(address), values);
    }
  }
}

}  // namespace pvt_kernels::cuda
