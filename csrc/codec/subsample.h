// Updates of which only some blocks of 64 coordinates travel: the same share of every tile.
#pragma once

#include <cstddef>
#include <cstdint>

#include "element/philox.h"

namespace veilsum {

struct Subsample {
  unsigned keep;  // blocks of a whole tile, 1 .. 63 of 64
  PhiloxKey key;  // public
  bool rescale;   // whether what is kept stands for what is not
};

// One tile of group 1 and where its kept blocks lie, one after the other, on the coded grid.
struct KeptTile {
  std::uint64_t blocks;  // bit b: block b is kept
  std::uint64_t coded;   // first coordinate on the coded grid
  std::size_t count;     // of coordinates there
  double gain;           // of a kept value
};

// Throws ConfigError unless 1 <= keep <= 63.
void require_keep(unsigned keep);

// Coordinates of the coded grid of a group of `size`.
std::uint64_t coded_size(const Subsample& subsample, std::uint64_t size);

// Tile number `tile` of a group of `size` coordinates.
KeptTile kept_tile(const Subsample& subsample, std::uint64_t size, std::uint64_t tile);

// The largest gain of any tile.
double largest_gain(const Subsample& subsample);

// Throws ConfigError unless kept blocks mean the same to the codec wherever they lie.
void require_subsample_codec(std::uint16_t codec);

}  // namespace veilsum
