// The tile registers of AMX and their instructions: Intel 64 and IA-32 Architectures Software
// Developer's Manual, volume 2. As assembly and not by intrinsics: GCC's of the loads don't say
// that they read memory, so that stores to what they read may be left out.
#pragma once

#include <cstdint>

#if defined(PVT_KERNELS_AMX_STAND_IN)
#include "amx_stand_in.h"
#else

namespace pvt_kernels::cpu {
namespace {

// What LDTILECFG reads.
struct TileConfiguration {
  std::uint8_t palette, first_row, reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};

inline void tile_configure(const TileConfiguration& configuration) {
  asm volatile("ldtilecfg %0" ::"m"(configuration));
}

inline void tile_release() { asm volatile("tilerelease"); }

template <int Tile>
void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
}

// Rows that begin `stride` bytes apart.
template <int Tile>
void tile_load(const void* rows, std::int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(Tile) : "memory");
}

template <int Tile>
void tile_store(void* rows, std::int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(Tile) : "memory");
}

// Sums[i][j] += sum over k of the two products of the bf16 pairs Left[i][k] and Right[k][j].
template <int Sums, int Left, int Right>
void tile_multiply_add() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(Left), "i"(Right));
}

}  // namespace
}  // namespace pvt_kernels::cpu

#endif
