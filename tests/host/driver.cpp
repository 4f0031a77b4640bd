// Stands in for the CUDA driver where there is no GPU, under its library's name: takes modules,
// attributes and launches, checks them, counts, and does nothing else. What is wrong is an error of
// the call, and cuGetErrorString says what.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace {

enum Result { kSuccess = 0, kInvalidValue = 1, kInvalidContext = 201, kLaunchFailed = 719 };

// Of an H100.
constexpr unsigned kSharedOfAll = 48 * 1024, kSharedOfABlock = 227 * 1024, kMostThreads = 1024;

struct Parameter {
  int bytes;
  bool is_pointer, may_be_null;
};

// What the compiler's metadata says of a kernel, by the number that stands for its machine code.
struct Kernel {
  std::string name;
  unsigned threads, shared_bytes;
  std::vector<Parameter> parameters;
  unsigned allowed_shared_bytes = kSharedOfAll;
};

std::vector<Kernel> kernels;
std::map<std::uintptr_t, std::uintptr_t> live;  // memory: begin to end
bool watches_memory = false;
std::vector<std::string> launched;
long failing_launch = -1;
int modules_loaded = 0;
std::string fault;
int primary;  // its address is that of the primary context
thread_local std::vector<void*> contexts;

Result fail(Result result, const std::string& what) {
  fault = what;
  return result;
}

std::string check_pointer(std::uintptr_t address) {
  if (address % 16) return "is no multiple of 16";
  if (!watches_memory) return "";
  auto after = live.upper_bound(address);
  if (after == live.begin()) return "is of no live memory";
  --after;
  return address < after->second ? "" : "is of no live memory";
}

std::string check_launch(const Kernel& k, unsigned blocks, unsigned threads, unsigned shared_bytes,
                         void** arguments) {
  if (blocks < 1 || blocks > 0x7fffffff) return "a grid of " + std::to_string(blocks);
  if (threads != k.threads || threads > kMostThreads)
    return "blocks of " + std::to_string(threads) + " threads";
  if (shared_bytes != k.shared_bytes || shared_bytes > k.allowed_shared_bytes)
    return std::to_string(shared_bytes) + " bytes of shared memory";
  for (std::size_t i = 0; i < k.parameters.size(); ++i) {
    const Parameter& p = k.parameters[i];
    const std::string name = "argument " + std::to_string(i) + " ";
    if (!arguments[i]) return name + "is missing";
    std::uint64_t value = 0;
    std::memcpy(&value, arguments[i], p.bytes);
    if (!p.is_pointer) continue;
    if (p.may_be_null) {
      if (value != 0) return name + "is no null pointer";
      continue;
    }
    const std::string wrong = check_pointer(value);
    if (!wrong.empty()) return name + wrong;
  }
  if (arguments[k.parameters.size()]) return "too many arguments";
  return "";
}

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

// What the tests call.

API int stand_in_add_kernel(const char* name, unsigned threads, unsigned shared_bytes, int count,
                            const int* bytes, const int* kinds) {
  Kernel kernel{name, threads, shared_bytes, {}};
  // 0: a number, 1: a pointer, 2: a pointer to scratch memory, of which there is none
  for (int i = 0; i < count; ++i)
    kernel.parameters.push_back({bytes[i], kinds[i] > 0, kinds[i] == 2});
  kernels.push_back(kernel);
  return static_cast<int>(kernels.size()) - 1;
}
API void stand_in_set_live(int count, const std::uintptr_t* begins, const std::uintptr_t* ends) {
  live.clear();
  for (int i = 0; i < count; ++i) {
    auto& end = live[begins[i]];
    if (ends[i] > end) end = ends[i];
  }
  // of none, memory is not watched
  watches_memory = count > 0;
}
API void stand_in_reset(long failing) {
  launched.clear();
  failing_launch = failing;
}
API long stand_in_launches() { return static_cast<long>(launched.size()); }
API const char* stand_in_launched(long i) { return launched[i].c_str(); }
API int stand_in_modules() { return modules_loaded; }

// What csrc/cuda/driver.cpp calls.

API int cuInit(unsigned) { return kSuccess; }
API int cuGetErrorName(int result, const char** name) {
  *name = result == kInvalidValue     ? "CUDA_ERROR_INVALID_VALUE"
          : result == kInvalidContext ? "CUDA_ERROR_INVALID_CONTEXT"
                                      : "CUDA_ERROR_LAUNCH_FAILED";
  return kSuccess;
}
API int cuGetErrorString(int, const char** text) {
  *text = fault.c_str();
  return kSuccess;
}
API int cuDeviceGet(int* device, int index) {
  *device = index;
  return index == 0 ? kSuccess : fail(kInvalidValue, "there is one device");
}
API int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &primary;
  return kSuccess;
}
API int cuCtxGetCurrent(void** context) {
  *context = contexts.empty() ? nullptr : contexts.back();
  return kSuccess;
}
API int cuCtxPushCurrent_v2(void* context) {
  contexts.push_back(context);
  return kSuccess;
}
API int cuCtxPopCurrent_v2(void** context) {
  *context = contexts.back();
  contexts.pop_back();
  return kSuccess;
}
API int cuModuleLoadData(void** module, const void* image) {
  if (contexts.empty()) return fail(kInvalidContext, "no context is current");
  const int number = std::atoi(static_cast<const char*>(image));
  *module = reinterpret_cast<void*>(static_cast<std::intptr_t>(number + 1));
  ++modules_loaded;
  return kSuccess;
}
API int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = module;
  const Kernel& k = kernels[reinterpret_cast<std::intptr_t>(module) - 1];
  return k.name == name ? kSuccess : fail(kInvalidValue, std::string("no kernel ") + name);
}
API int cuFuncSetCacheConfig(void*, int) { return kSuccess; }
API int cuFuncGetAttribute(int* value, int, void*) {
  *value = 0;
  return kSuccess;
}
API int cuFuncSetAttribute(void* function, int, int value) {
  if (value < 0 || static_cast<unsigned>(value) > kSharedOfABlock)
    return fail(kInvalidValue, std::to_string(value) + " bytes of shared memory");
  kernels[reinterpret_cast<std::intptr_t>(function) - 1].allowed_shared_bytes = value;
  return kSuccess;
}
API int cuLaunchKernel(void* function, unsigned blocks, unsigned, unsigned, unsigned threads,
                       unsigned, unsigned, unsigned shared_bytes, void*, void** arguments, void**) {
  if (contexts.empty()) return fail(kInvalidContext, "no context is current");
  const Kernel& k = kernels[reinterpret_cast<std::intptr_t>(function) - 1];
  if (static_cast<long>(launched.size()) == failing_launch)
    return fail(kLaunchFailed, "as the test asked for");
  const std::string wrong = check_launch(k, blocks, threads, shared_bytes, arguments);
  if (!wrong.empty()) return fail(kInvalidValue, wrong);
  launched.push_back(k.name);
  return kSuccess;
}
