// Stands in for csrc/cpu/amx.h: the same functions in plain C++, so that any machine runs the code
// path amx_bf16, and sanitizers see what it reads and writes. As strict as the hardware is: without
// a configuration every one aborts.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace pvt_kernels::cpu {
namespace {

struct TileConfiguration {
  std::uint8_t palette, first_row, reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};

// One thread's registers.
struct StandInTiles {
  TileConfiguration configuration;
  alignas(64) unsigned char data[8][16][64];

  [[noreturn]] static void fail(const char* what) {
    std::fprintf(stderr, "AMX: %s\n", what);
    std::abort();
  }

  void require(int tile) const {
    if (configuration.palette != 1) fail("the thread has no configuration");
    if (tile < 0 || tile > 7) fail("no such tile");
    if (configuration.rows[tile] > 16 || configuration.row_bytes[tile] > 64) fail("a large tile");
  }
};

inline StandInTiles& stand_in_tiles() {
  static thread_local StandInTiles tiles;
  return tiles;
}

inline void tile_configure(const TileConfiguration& configuration) {
  StandInTiles& tiles = stand_in_tiles();
  if (tiles.configuration.palette != 0) StandInTiles::fail("configured without a release");
  std::memset(&tiles, 0, sizeof tiles);
  tiles.configuration = configuration;
}

inline void tile_release() { std::memset(&stand_in_tiles(), 0, sizeof(StandInTiles)); }

template <int Tile>
void tile_zero() {
  stand_in_tiles().require(Tile);
  std::memset(stand_in_tiles().data[Tile], 0, sizeof stand_in_tiles().data[Tile]);
}

template <int Tile>
void tile_load(const void* rows, std::int64_t stride) {
  StandInTiles& tiles = stand_in_tiles();
  tile_zero<Tile>();
  for (int i = 0; i < tiles.configuration.rows[Tile]; ++i)
    std::memcpy(tiles.data[Tile][i], static_cast<const char*>(rows) + i * stride,
                tiles.configuration.row_bytes[Tile]);
}

template <int Tile>
void tile_store(void* rows, std::int64_t stride) {
  StandInTiles& tiles = stand_in_tiles();
  tiles.require(Tile);
  for (int i = 0; i < tiles.configuration.rows[Tile]; ++i)
    std::memcpy(static_cast<char*>(rows) + i * stride, tiles.data[Tile][i],
                tiles.configuration.row_bytes[Tile]);
}

// The order of the manual's pseudocode: of each pair the first product, then the second.
template <int Sums, int Left, int Right>
void tile_multiply_add() {
  StandInTiles& tiles = stand_in_tiles();
  for (int tile : {Sums, Left, Right}) tiles.require(tile);
  const TileConfiguration& c = tiles.configuration;
  const int depth = c.row_bytes[Left] / 4, columns = c.row_bytes[Sums] / 4;
  if (c.rows[Sums] != c.rows[Left] || c.rows[Right] != depth ||
      c.row_bytes[Right] != c.row_bytes[Sums])
    StandInTiles::fail("shapes that don't go together");
  const auto value = [](std::uint32_t half) {
    const std::uint32_t bits = half << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    // subnormal numbers count as 0
    return (bits & 0x7f800000) == 0 ? 0.0f : x;
  };
  const auto unit = [&](int tile, int i, int k) {
    std::uint32_t bits;
    std::memcpy(&bits, tiles.data[tile][i] + 4 * k, sizeof bits);
    return bits;
  };
  // the right tile's halves as floats, once for all rows
  float first[16][16], second[16][16];
  for (int k = 0; k < depth; ++k) {
    for (int j = 0; j < columns; ++j) {
      first[k][j] = value(unit(Right, k, j) & 0xffff);
      second[k][j] = value(unit(Right, k, j) >> 16);
    }
  }
  for (int i = 0; i < c.rows[Sums]; ++i) {
    float sums[16];
    std::memcpy(sums, tiles.data[Sums][i], sizeof sums);
    for (int k = 0; k < depth; ++k) {
      const float low = value(unit(Left, i, k) & 0xffff), high = value(unit(Left, i, k) >> 16);
      for (int j = 0; j < columns; ++j) {
        sums[j] += low * first[k][j];
        sums[j] += high * second[k][j];
      }
    }
    std::memcpy(tiles.data[Sums][i], sums, sizeof sums);
  }
}

}  // namespace
}  // namespace pvt_kernels::cpu
