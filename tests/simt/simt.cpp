#include "simt.h"

#include <cuda_runtime.h>
#include <dlfcn.h>
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
constexpr int kMostWarps = 8;
constexpr int kBanks = 32, kWordBytes = 4;

struct SharedAccess {
  std::size_t offset;
  int bytes;
  Access kind;
};

enum class State { ready, at_barrier, in_collective, done };

struct Thread {
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  void* stack_pointer = nullptr;
  State state = State::done;
  void* brought = nullptr;
  void (*operation)(void* const*) = nullptr;
  std::vector<SharedAccess> accesses;  // since the warp last met
};

std::vector<std::unique_ptr<Thread>> threads;
Thread* current = nullptr;
const std::function<void()>* kernel_body = nullptr;
std::mt19937_64 generator;

// Barriers that the block has met at, over all blocks, and those that each warp has.
std::uint32_t block_epoch = 0, warp_epochs[kMostWarps] = {};

// Who accessed a word last, and when.
struct Stamp {
  static constexpr int kSomeLane = -1;
  std::uint32_t block_epoch = 0, warp_epoch = 0;
  std::int16_t warp = 0, lane = 0;

  bool at_once_with(const Stamp& other) const {
    if (block_epoch != other.block_epoch) return false;
    if (warp != other.warp) return true;
    return warp_epoch == other.warp_epoch && (lane != other.lane || lane == kSomeLane);
  }
};

struct Word {
  Stamp store, loads[kMostWarps];
};
std::vector<Word> words(sizeof(shared_memory) / kWordBytes);

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

// A warp's access is served in phases of as many lanes as 128 bytes have room for; a phase takes as
// long as the most distinct words in one bank (CUDA C++ Programming Guide, "Shared Memory").
void count_bank_ways(int warp, std::size_t index) {
  const SharedAccess* lanes[kLanes];
  const SharedAccess* any = nullptr;
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& accesses = threads[warp * kLanes + lane]->accesses;
    lanes[lane] = index < accesses.size() ? &accesses[index] : nullptr;
    if (lanes[lane] == nullptr) continue;
    if (any && (any->bytes != lanes[lane]->bytes || any->kind != lanes[lane]->kind))
      fail("the lanes of a warp access shared memory in different ways");
    any = lanes[lane];
  }
  ++counters.shared_accesses;
  const int in_phase = std::min(kLanes, kBanks * kWordBytes / any->bytes);
  for (int first = 0; first < kLanes; first += in_phase) {
    std::vector<std::size_t> in_bank[kBanks];
    for (int lane = first; lane < first + in_phase; ++lane) {
      if (lanes[lane] == nullptr) continue;
      for (int i = 0; i < any->bytes / kWordBytes; ++i) {
        const std::size_t word = lanes[lane]->offset / kWordBytes + i;
        auto& bank = in_bank[word % kBanks];
        if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
        counters.most_bank_ways = std::max<std::uint64_t>(counters.most_bank_ways, bank.size());
      }
    }
  }
}

void count_accesses(int warp) {
  std::size_t most = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    most = std::max(most, threads[warp * kLanes + lane]->accesses.size());
  for (std::size_t index = 0; index < most; ++index) count_bank_ways(warp, index);
  for (int lane = 0; lane < kLanes; ++lane) threads[warp * kLanes + lane]->accesses.clear();
}

bool in_shared_memory(const void* address) {
  const auto* byte = static_cast<const unsigned char*>(address);
  return byte >= shared_memory && byte < shared_memory + sizeof(shared_memory);
}

std::size_t offset_of(const void* address) {
  return static_cast<std::size_t>(static_cast<const unsigned char*>(address) - shared_memory);
}

void check_order(const void* address, int bytes, Access kind, bool by_known_lane) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kLanes;
  const auto lane = static_cast<std::int16_t>(by_known_lane ? thread % kLanes : Stamp::kSomeLane);
  const Stamp now = {block_epoch, warp_epochs[warp], static_cast<std::int16_t>(warp), lane};
  const std::size_t first = offset_of(address) / kWordBytes;
  for (std::size_t i = first; i < first + bytes / kWordBytes; ++i) {
    Word& word = words[i];
    if (now.at_once_with(word.store)) fail("a word of shared memory that another thread stores");
    if (kind == Access::load) {
      Stamp& last = word.loads[warp];
      const bool same_time =
          last.block_epoch == now.block_epoch && last.warp_epoch == now.warp_epoch;
      const bool shared = same_time && last.lane != lane;
      last = now;
      if (shared) last.lane = Stamp::kSomeLane;
    } else {
      for (const Stamp& load : word.loads)
        if (now.at_once_with(load)) fail("a store to what another thread loads from shared memory");
      word.store = now;
    }
  }
}

void sync_warp(void* const*) {}

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
    if (settings.watch_banks) count_accesses(warp);
    if (collectives == 0) return;
    threadIdx.x = first;
    if (collectives != kLanes) fail("not all lanes of the warp meet in a collective operation");
    const auto operation = threads[first]->operation;
    for (int lane = 0; lane < kLanes; ++lane)
      if (threads[first + lane]->operation != operation)
        fail("the lanes of a warp meet in different collective operations");
    if (operation == sync_warp) ++warp_epochs[warp];
    operation(brought);
    for (int lane = 0; lane < kLanes; ++lane) threads[first + lane]->state = State::ready;
  }
}

void run_block(int count) {
  for (int i = 0; i < count; ++i) start(*threads[i]);
  for (;;) {
    ++block_epoch;
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

void warp_barrier() { collective(nullptr, sync_warp); }

void access_shared(const void* address, int bytes, Access kind) {
  if (!in_shared_memory(address)) return;
  if (bytes % kWordBytes != 0 || offset_of(address) % bytes != 0)
    fail("an access to shared memory at an odd address, or of an odd size");
  if (settings.watch_banks) current->accesses.push_back({offset_of(address), bytes, kind});
  check_order(address, bytes, kind, true);
}

void arrive_in_shared(const void* address, int bytes) {
  if (in_shared_memory(address)) check_order(address, bytes, Access::store, true);
}

void access_shared_by_warp(const void* address, int bytes, Access kind) {
  if (in_shared_memory(address)) check_order(address, bytes, kind, false);
}

void collective(void* mine, void (*operation)(void* const*)) {
  current->state = State::in_collective;
  current->brought = mine;
  current->operation = operation;
  to_scheduler(false);
}

std::string symbol_of(void (*kernel)()) {
  Dl_info info;
  if (!dladdr(reinterpret_cast<void*>(kernel), &info) || info.dli_sname == nullptr)
    fail("a kernel without a symbol");
  return info.dli_sname;
}

void run_grid(unsigned blocks, unsigned count, std::size_t shared_bytes,
              const std::function<void()>& kernel) {
  gridDim = dim3(blocks);
  blockDim = dim3(count);
  blockIdx = {0, 0, 0};
  if (count % kLanes != 0 || count > kMostWarps * kLanes) fail("a block of an odd size");
  if (blocks == 0) fail("a grid without blocks");
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
