// Runs CUDA kernels on the CPU: a block's threads as fibers, one at a time. A thread runs until it
// reaches a barrier or a warp's collective operation; which thread runs next is drawn at random, so
// that what is right by luck of the order alone comes out wrong. Shared memory begins full of NaN,
// AddressSanitizer watches it beyond the size that the launch asked for, and two threads that
// access the same word, one of them writing, with no barrier in between end the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace simt {

constexpr int kLanes = 32;

// What the launches that follow run on.
struct Settings {
  int arch = 80;  // which the code counts as compiled for: 75 for compute capability 7.5
  int multiprocessors = 4;
  std::size_t shared_memory_per_block = 48 * 1024;  // the most a launch may ask for
  std::uint64_t seed = 0;                           // of the order of threads
  int failing_launch = -1;                          // the one that reports an error, from 0
  bool watch_banks = false;                         // whether to count conflicts, which takes time
};
extern Settings settings;

// Bytes of global memory.
struct Traffic {
  std::uint64_t loaded = 0, stored = 0;
};

// What the launches did since the settings were made.
struct Counters {
  std::vector<Traffic> launches;
  std::vector<std::string> kernels;  // the symbol of each
  // by ldmatrix: rows in the same bank as another row of their matrix, beyond the first
  std::uint64_t matrix_conflicts = 0, matrices_loaded = 0;
  // by a warp's other accesses to shared memory: how many, and the most words that one of them
  // wants of one bank at a time
  std::uint64_t shared_accesses = 0, most_bank_ways = 0;
  // attributes of the device and of kernels, asked for or set
  std::uint64_t attributes = 0;
};
extern Counters counters;

// The symbol of a kernel.
std::string symbol_of(void (*kernel)());

void run_grid(unsigned blocks, unsigned threads, std::size_t shared_bytes,
              const std::function<void()>& kernel);

// __syncthreads() and __syncwarp(), the only ones that order accesses to memory.
void barrier();
void warp_barrier();

// An access of the running thread to shared memory; elsewhere it counts for nothing.
enum class Access { load, store };
void access_shared(const void* address, int bytes, Access kind);
// One that the banks have seen before: the arrival of a copy.
void arrive_in_shared(const void* address, int bytes);
// One of some lane of the running thread's warp, which of them not being known.
void access_shared_by_warp(const void* address, int bytes, Access kind);

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
