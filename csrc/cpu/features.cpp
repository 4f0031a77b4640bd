#include "cpu/features.h"

#include <cstdint>

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__) || defined(_M_X64)
#define PVT_KERNELS_X86_64
#ifdef _MSC_VER
#include <immintrin.h>
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace pvt_kernels {

#ifdef PVT_KERNELS_X86_64
namespace {

struct Registers {
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero for a leaf that this CPU does not have.
Registers cpuid(std::uint32_t leaf, std::uint32_t subleaf) {
  Registers r;
#ifdef _MSC_VER
  int values[4];
  __cpuid(values, 0);
  if (leaf > static_cast<std::uint32_t>(values[0])) return r;
  __cpuidex(values, static_cast<int>(leaf), static_cast<int>(subleaf));
  r.eax = values[0], r.ebx = values[1], r.ecx = values[2], r.edx = values[3];
#else
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
#endif
  return r;
}

// The register states that the operating system saves (XCR0). By instruction instead of intrinsic
// on GCC and clang, where the intrinsic needs -mxsave for the whole file.
std::uint64_t saved_states() {
  constexpr std::uint32_t osxsave = 1u << 27;
  if ((cpuid(1, 0).ecx & osxsave) == 0) return 0;
#ifdef _MSC_VER
  return _xgetbv(0);
#else
  std::uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
#endif
}

}  // namespace

// Bit positions: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2A, CPUID,
// and volume 1, section 13.3 (XCR0).
std::map<std::string, bool> cpu_features() {
  const Registers leaf1 = cpuid(1, 0);
  const Registers leaf7 = cpuid(7, 0);
  const Registers leaf7_1 = leaf7.eax >= 1 ? cpuid(7, 1) : Registers{};
  const auto bit = [](std::uint32_t value, int position) { return ((value >> position) & 1) != 0; };

  const std::uint64_t states = saved_states();
  const auto saves = [states](std::uint64_t mask) { return (states & mask) == mask; };
  const bool avx = saves(0x6);      // xmm, ymm
  const bool avx512 = saves(0xe6);  // and opmasks, zmm0-15 high halves, zmm16-31
  const bool amx = saves(0x60000);  // tile configuration, tile data

  return {
      {"avx2", avx && bit(leaf7.ebx, 5)},
      {"fma", avx && bit(leaf1.ecx, 12)},
      {"avx512f", avx512 && bit(leaf7.ebx, 16)},
      {"avx512dq", avx512 && bit(leaf7.ebx, 17)},
      {"avx512bw", avx512 && bit(leaf7.ebx, 30)},
      {"avx512vl", avx512 && bit(leaf7.ebx, 31)},
      {"avx512_bf16", avx512 && bit(leaf7_1.eax, 5)},
      {"avx512_fp16", avx512 && bit(leaf7.edx, 23)},
      {"amx_tile", amx && bit(leaf7.edx, 24)},
      {"amx_bf16", amx && bit(leaf7.edx, 22)},
  };
}

#elif defined(__aarch64__) || defined(_M_ARM64)

// NEON is part of the AArch64 baseline, so there is nothing to detect.
std::map<std::string, bool> cpu_features() { return {{"neon", true}}; }

#else

std::map<std::string, bool> cpu_features() { return {}; }

#endif

#if defined(__linux__) && defined(__x86_64__)
bool request_amx() {
  // of Linux's asm/prctl.h, and the tiles' bit in XCR0
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool request_amx() { return false; }
#endif

}  // namespace pvt_kernels
