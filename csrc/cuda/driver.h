// Launches kernels that were compiled elsewhere, such as by Triton, through the CUDA driver. Needs
// no toolkit to build and no driver to load: the driver's functions are found at the first call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace pvt_kernels::driver {

// A kernel in the primary context of a device, until the process ends.
class Kernel {
 public:
  // `image` is a cubin. Throws std::runtime_error, which names the kernel, where there is no
  // driver, no such device, or no room for `shared_bytes` of dynamic shared memory.
  Kernel(int device, const std::string& image, const std::string& name, unsigned threads,
         unsigned shared_bytes);

  const std::string& name() const { return name_; }

 private:
  friend class Plan;
  std::string name_;
  unsigned threads_, shared_bytes_;
  void* context_ = nullptr;
  void* function_ = nullptr;
};

// An argument whose address is known at the launch alone: so many bytes into a slot.
struct Slot {
  std::size_t index;
  std::int64_t offset;
};
struct Int32 {
  std::int32_t value;
};
using Argument = std::variant<Slot, std::int64_t, Int32, float>;

struct Launch {
  Kernel kernel;
  std::int64_t blocks;
  std::vector<Argument> arguments;
};

// Launches that follow each other on a stream, with everything but the addresses packed. Constant
// once it is made, so that threads may launch it side by side.
class Plan {
 public:
  // Throws std::invalid_argument for a grid that is empty or has more than 2^31 - 1 blocks.
  Plan(const std::vector<Launch>& launches, std::size_t slots);

  // `addresses` are those of the slots. Throws std::invalid_argument for another number of them,
  // std::runtime_error if the driver refuses a launch; both name the kernel.
  void launch(void* stream, const std::vector<std::uintptr_t>& addresses) const;

  std::size_t size() const { return packed_.size(); }

 private:
  struct Address {
    std::size_t cell, slot;
    std::int64_t offset;
  };
  struct Packed {
    Kernel kernel;
    unsigned blocks;
    std::vector<std::uint64_t> cells;  // an argument each, in its first bytes
    std::vector<Address> addresses;
  };
  std::vector<Packed> packed_;
  std::size_t slots_;
};

}  // namespace pvt_kernels::driver
