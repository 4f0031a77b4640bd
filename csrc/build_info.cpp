#include "build_info.h"

#include <sstream>

#include "build_config.h"

namespace pvt_kernels {
namespace {

std::optional<std::string> none_if_empty(const std::string& text) {
  return text.empty() ? std::nullopt : std::make_optional(text);
}

// CMake writes a list as one string with semicolons.
std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> items;
  std::istringstream stream(list);
  for (std::string item; std::getline(stream, item, ';');) items.push_back(item);
  return items;
}

}  // namespace

BuildInfo build_info() {
  BuildInfo info;
  info.version = PVT_KERNELS_VERSION;
  info.interface = PVT_KERNELS_INTERFACE;
  info.compiler = PVT_KERNELS_COMPILER;
  info.build_type = PVT_KERNELS_BUILD_TYPE;
  info.cuda = none_if_empty(PVT_KERNELS_CUDA_VERSION);
  info.cuda_archs = split(PVT_KERNELS_CUDA_ARCHS);
  info.cuda_missing = none_if_empty(PVT_KERNELS_CUDA_MISSING);
#ifdef PVT_KERNELS_TREAT_AS_ARCH
  info.cuda_treat_as_arch = PVT_KERNELS_TREAT_AS_ARCH;
#endif
  return info;
}

}  // namespace pvt_kernels
