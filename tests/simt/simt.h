// Runs CUDA kernels on the CPU: a block's threads as fibers, one at a time. A thread runs until it
// reaches a barrier or a warp's collective operation; which thread runs next is drawn at random, so
// that what is right by luck of the order alone comes out wrong. Shared memory begins full of NaN,
// and AddressSanitizer watches it beyond the size that the launch asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace simt {

constexpr int kLanes = 32;

// What the launches that follow run on.
struct Settings {
  int arch = 80;  // which the code counts as compiled for: 75 for compute capability 7.5
  int multiprocessors = 4;
  std::size_t shared_memory_per_block = 0;  // the most a launch may ask for
  std::uint64_t seed = 0;                   // of the order of threads
};
extern Settings settings;

// What the launches did since reset_counters().
struct Counters {
  std::uint64_t loaded = 0, stored = 0;  // bytes of global memory
  // rows of ldmatrix in the same bank as another row of its matrix, beyond the first
  std::uint64_t bank_conflicts = 0, matrices_loaded = 0;
};
extern Counters counters;

void run_grid(unsigned blocks, unsigned threads, std::size_t shared_bytes,
              const std::function<void()>& kernel);

// __syncthreads()
void barrier();

// Meets the warp's other lanes; then `operation` is called once with what all of them brought.
void collective(void* mine, void (*operation)(void* const* lanes));

template <class T>
using Lanes = T* const (&)[kLanes];

// The same with types; F is a function object without state.
template <class T, class F>
void in_lockstep(T& mine, F operation) {
  static void (*typed)(Lanes<T>);
  typed = operation;
  collective(&mine, [](void* const* lanes) {
    T* brought[kLanes];
    for (int i = 0; i < kLanes; ++i) brought[i] = static_cast<T*>(lanes[i]);
    typed(brought);
  });
}

// Ends the process with a message that names the block and the thread.
[[noreturn]] void fail(const char* message);

}  // namespace simt
