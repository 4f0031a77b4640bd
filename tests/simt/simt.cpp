#include "simt.h"

#include <cuda_runtime.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace pvt_kernels::cuda {
// more than any architecture has
alignas(128) unsigned char shared_memory[256 * 1024];
}  // namespace pvt_kernels::cuda

// Saves the callee's registers (System V ABI) on the stack, its pointer in *from, and goes on from
// the stack `to`.
extern "C" void simt_switch(void** from, void* to);
asm(R"(
.text
.hidden simt_switch
.globl simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, . - simt_switch
)");

namespace simt {

Settings settings;
Counters counters;

namespace {

using pvt_kernels::cuda::shared_memory;

constexpr std::size_t kStackBytes = 256 * 1024;

enum class State { ready, at_barrier, in_collective, done };

struct Thread {
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  void* stack_pointer = nullptr;
  State state = State::done;
  void* brought = nullptr;
  void (*operation)(void* const*) = nullptr;
};

std::vector<std::unique_ptr<Thread>> threads;
Thread* current = nullptr;
const std::function<void()>* kernel_body = nullptr;
std::mt19937_64 generator;

void* scheduler_stack_pointer = nullptr;
const void* scheduler_stack = nullptr;
std::size_t scheduler_stack_bytes = 0;

void to_scheduler(bool for_good) {
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack, scheduler_stack,
                                 scheduler_stack_bytes);
  simt_switch(&current->stack_pointer, scheduler_stack_pointer);
  __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack, &scheduler_stack_bytes);
}

void thread_main() {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  (*kernel_body)();
  current->state = State::done;
  to_scheduler(true);
}

void start(Thread& thread) {
  // the frames of the thread that ended there
  ASAN_UNPOISON_MEMORY_REGION(thread.stack.get(), kStackBytes);
  // the registers that simt_switch pops, then where it returns to; the stack is as after a call
  auto* top = reinterpret_cast<void**>(
      reinterpret_cast<std::uintptr_t>(thread.stack.get() + kStackBytes) / 16 * 16);
  void** frame = top - 8;
  std::fill(frame, top, nullptr);
  frame[6] = reinterpret_cast<void*>(&thread_main);
  thread.stack_pointer = frame;
  thread.state = State::ready;
}

void resume(int index) {
  Thread& thread = *threads[index];
  current = &thread;
  threadIdx = {static_cast<unsigned>(index), 0, 0};
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, thread.stack.get(), kStackBytes);
  simt_switch(&scheduler_stack_pointer, thread.stack_pointer);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

std::vector<int> shuffled(int count) {
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), generator);
  return order;
}

// Runs the warp's threads until all of them are done or wait for the rest of the block.
void run_warp(int warp) {
  const int first = warp * kLanes;
  for (;;) {
    for (const int lane : shuffled(kLanes))
      if (threads[first + lane]->state == State::ready) resume(first + lane);
    int collectives = 0;
    void* brought[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const Thread& thread = *threads[first + lane];
      brought[lane] = thread.brought;
      if (thread.state == State::in_collective) ++collectives;
    }
    if (collectives == 0) return;
    threadIdx.x = first;
    if (collectives != kLanes) fail("not all lanes of the warp meet in a collective operation");
    const auto operation = threads[first]->operation;
    for (int lane = 0; lane < kLanes; ++lane)
      if (threads[first + lane]->operation != operation)
        fail("the lanes of a warp meet in different collective operations");
    operation(brought);
    for (int lane = 0; lane < kLanes; ++lane) threads[first + lane]->state = State::ready;
  }
}

void run_block(int count) {
  for (int i = 0; i < count; ++i) start(*threads[i]);
  for (;;) {
    for (const int warp : shuffled(count / kLanes)) run_warp(warp);
    const int waiting =
        std::count_if(threads.begin(), threads.begin() + count,
                      [](const auto& thread) { return thread->state == State::at_barrier; });
    if (waiting == 0) return;
    if (waiting != count) fail("some threads ended, and others wait for them at a barrier");
    for (int i = 0; i < count; ++i) threads[i]->state = State::ready;
  }
}

}  // namespace

void fail(const char* message) {
  std::fprintf(stderr, "simt: block %u, thread %u: %s\n", blockIdx.x, threadIdx.x, message);
  std::abort();
}

void barrier() {
  current->state = State::at_barrier;
  to_scheduler(false);
}

void collective(void* mine, void (*operation)(void* const*)) {
  current->state = State::in_collective;
  current->brought = mine;
  current->operation = operation;
  to_scheduler(false);
}

void run_grid(unsigned blocks, unsigned count, std::size_t shared_bytes,
              const std::function<void()>& kernel) {
  gridDim = dim3(blocks);
  blockDim = dim3(count);
  blockIdx = {0, 0, 0};
  if (count % kLanes != 0 || count > 1024) fail("a block of an odd size");
  if (shared_bytes > settings.shared_memory_per_block) fail("more shared memory than there is");
  while (threads.size() < count) threads.push_back(std::make_unique<Thread>());
  generator.seed(settings.seed);
  kernel_body = &kernel;
  for (const int block : shuffled(static_cast<int>(blocks))) {
    blockIdx.x = static_cast<unsigned>(block);
    // as fp32, fp16 and bf16 alike a NaN
    std::memset(shared_memory, 0xff, shared_bytes);
    ASAN_POISON_MEMORY_REGION(shared_memory + shared_bytes, sizeof(shared_memory) - shared_bytes);
    run_block(static_cast<int>(count));
    ASAN_UNPOISON_MEMORY_REGION(shared_memory, sizeof(shared_memory));
  }
}

}  // namespace simt
