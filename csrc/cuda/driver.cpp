#include "cuda/driver.h"

#include <cstring>
#include <limits>
#include <stdexcept>

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace pvt_kernels::driver {
namespace {

// What cuda.h declares, which need not be there.
using Result = int;
using Device = int;
constexpr Result kSuccess = 0;
constexpr int kSharedSizeBytes = 1;            // CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES
constexpr int kMaxDynamicSharedSizeBytes = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr int kPreferShared = 1;               // CU_FUNC_CACHE_PREFER_SHARED
constexpr unsigned kSharedOfAll = 48 * 1024;   // what a kernel may have without asking
constexpr std::size_t kMostArguments = 64;

void* open_library() {
#if defined(_WIN32)
  return reinterpret_cast<void*>(LoadLibraryA("nvcuda.dll"));
#else
  return dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
#endif
}

void* symbol(void* library, const char* name) {
#if defined(_WIN32)
  return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(library), name));
#else
  return dlsym(library, name);
#endif
}

// The driver's functions, by the names that its headers give them.
struct Driver {
  Result (*get_error_name)(Result, const char**);
  Result (*get_error_string)(Result, const char**);
  Result (*init)(unsigned);
  Result (*device_get)(Device*, int);
  Result (*primary_context_retain)(void**, Device);
  Result (*context_get_current)(void**);
  Result (*context_push)(void*);
  Result (*context_pop)(void**);
  Result (*module_load)(void**, const void*);
  Result (*module_get_function)(void**, void*, const char*);
  Result (*function_get_attribute)(int*, int, void*);
  Result (*function_set_attribute)(void*, int, int);
  Result (*function_set_cache_config)(void*, int);
  Result (*launch_kernel)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                          unsigned, void*, void**, void**);

  Driver() {
    void* library = open_library();
    if (!library) throw std::runtime_error("no CUDA driver is installed");
    find(library, "cuGetErrorName", get_error_name);
    find(library, "cuGetErrorString", get_error_string);
    find(library, "cuInit", init);
    find(library, "cuDeviceGet", device_get);
    find(library, "cuDevicePrimaryCtxRetain", primary_context_retain);
    find(library, "cuCtxGetCurrent", context_get_current);
    find(library, "cuCtxPushCurrent_v2", context_push);
    find(library, "cuCtxPopCurrent_v2", context_pop);
    find(library, "cuModuleLoadData", module_load);
    find(library, "cuModuleGetFunction", module_get_function);
    find(library, "cuFuncGetAttribute", function_get_attribute);
    find(library, "cuFuncSetAttribute", function_set_attribute);
    find(library, "cuFuncSetCacheConfig", function_set_cache_config);
    find(library, "cuLaunchKernel", launch_kernel);
    check(init(0), "cuInit");
  }

  // Throws std::runtime_error, which names the call.
  void check(Result result, const char* call) const {
    if (result == kSuccess) return;
    const char *name = nullptr, *text = nullptr;
    if (get_error_name(result, &name) != kSuccess || !name) name = "an unknown error";
    if (get_error_string(result, &text) != kSuccess || !text) text = "no description";
    throw std::runtime_error(std::string(call) + " failed: " + text + " (" + name + ")");
  }

 private:
  template <class F>
  static void find(void* library, const char* name, F& function) {
    function = reinterpret_cast<F>(symbol(library, name));
    if (!function)
      throw std::runtime_error(std::string("the CUDA driver has no ") + name + ": it is too old");
  }
};

const Driver& driver() {
  static const Driver found;
  return found;
}

// Makes a context the thread's current one, where it is not: a thread that PyTorch has not used for
// the device has none, or another device's.
class CurrentContext {
 public:
  explicit CurrentContext(void* context) {
    void* current = nullptr;
    driver().check(driver().context_get_current(&current), "cuCtxGetCurrent");
    pushed_ = current != context;
    if (pushed_) driver().check(driver().context_push(context), "cuCtxPushCurrent");
  }
  ~CurrentContext() {
    void* popped = nullptr;
    if (pushed_) driver().context_pop(&popped);
  }
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;

 private:
  bool pushed_ = false;
};

template <class F>
void named(const std::string& kernel, F f) {
  try {
    f();
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(kernel + ": " + error.what());
  }
}

std::uint64_t cell_of(const void* value, std::size_t bytes) {
  std::uint64_t cell = 0;
  std::memcpy(&cell, value, bytes);
  return cell;
}

}  // namespace

Kernel::Kernel(int device, const std::string& image, const std::string& name, unsigned threads,
               unsigned shared_bytes)
    : name_(name), threads_(threads), shared_bytes_(shared_bytes) {
  named(name, [&] {
    const Driver& d = driver();
    Device handle = 0;
    d.check(d.device_get(&handle, device), "cuDeviceGet");
    // PyTorch's context, which the process keeps
    d.check(d.primary_context_retain(&context_, handle), "cuDevicePrimaryCtxRetain");
    const CurrentContext current(context_);
    void* module = nullptr;
    d.check(d.module_load(&module, image.data()), "cuModuleLoadData");
    d.check(d.module_get_function(&function_, module, name.c_str()), "cuModuleGetFunction");
    if (shared_bytes <= kSharedOfAll) return;
    // as Triton's own launcher does it
    int fixed = 0;
    d.check(d.function_set_cache_config(function_, kPreferShared), "cuFuncSetCacheConfig");
    d.check(d.function_get_attribute(&fixed, kSharedSizeBytes, function_), "cuFuncGetAttribute");
    d.check(d.function_set_attribute(function_, kMaxDynamicSharedSizeBytes,
                                     static_cast<int>(shared_bytes) - fixed),
            "cuFuncSetAttribute");
  });
}

Plan::Plan(const std::vector<Launch>& launches, std::size_t slots) : slots_(slots) {
  for (const Launch& launch : launches) {
    const std::string& name = launch.kernel.name();
    if (launch.blocks < 1 || launch.blocks > std::numeric_limits<std::int32_t>::max())
      throw std::invalid_argument(name + ": a grid has 1 to 2^31 - 1 blocks, got " +
                                  std::to_string(launch.blocks));
    if (launch.arguments.size() > kMostArguments)
      throw std::invalid_argument(name + ": a kernel has at most 64 arguments, got " +
                                  std::to_string(launch.arguments.size()));
    Packed packed{launch.kernel, static_cast<unsigned>(launch.blocks), {}, {}};
    for (const Argument& argument : launch.arguments) {
      std::uint64_t cell = 0;
      if (const auto* slot = std::get_if<Slot>(&argument)) {
        if (slot->index >= slots)
          throw std::invalid_argument(name + ": there is no slot " + std::to_string(slot->index));
        packed.addresses.push_back({packed.cells.size(), slot->index, slot->offset});
      } else if (const auto* wide = std::get_if<std::int64_t>(&argument)) {
        cell = cell_of(wide, sizeof(*wide));
      } else if (const auto* narrow = std::get_if<Int32>(&argument)) {
        cell = cell_of(&narrow->value, sizeof(narrow->value));
      } else {
        cell = cell_of(&std::get<float>(argument), sizeof(float));
      }
      packed.cells.push_back(cell);
    }
    packed_.push_back(std::move(packed));
  }
}

void Plan::launch(void* stream, const std::vector<std::uintptr_t>& addresses) const {
  if (packed_.empty()) return;
  if (addresses.size() != slots_)
    throw std::invalid_argument(packed_.front().kernel.name() + ": the plan has " +
                                std::to_string(slots_) + " slots, got " +
                                std::to_string(addresses.size()) + " addresses");
  const Driver& d = driver();
  const CurrentContext current(packed_.front().kernel.context_);
  std::uint64_t cells[kMostArguments];
  void* arguments[kMostArguments + 1];
  for (const Packed& p : packed_) {
    for (std::size_t i = 0; i < p.cells.size(); ++i) arguments[i] = cells + i;
    arguments[p.cells.size()] = nullptr;
    std::memcpy(cells, p.cells.data(), p.cells.size() * sizeof(cells[0]));
    for (const Address& a : p.addresses) cells[a.cell] = addresses[a.slot] + a.offset;
    const Kernel& k = p.kernel;
    const Result result = d.launch_kernel(k.function_, p.blocks, 1, 1, k.threads_, 1, 1,
                                          k.shared_bytes_, stream, arguments, nullptr);
    if (result != kSuccess) named(k.name_, [&] { d.check(result, "cuLaunchKernel"); });
  }
}

}  // namespace pvt_kernels::driver
