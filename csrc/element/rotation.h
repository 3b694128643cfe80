// The public randomized Hadamard transform (docs/format.md, "Rotation"): which signs flip, and
// how a run of coordinates falls into blocks.
//
// Everything here follows from a public seed. It spreads values evenly and hides nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "element/annotate.h"
#include "element/philox.h"

namespace veilsum {

inline constexpr std::size_t kRotationTile = 4096;  // no block crosses a multiple of it
inline constexpr std::size_t kSmallestRotation = 64;
inline constexpr std::size_t kSignsPerCounter = 128;  // bits of one Philox block

// Coordinates of a Hadamard block: 64, 256, 1024 or 4096, so that the square root of the size
// is a power of two and the normalization exact.
VS_FN bool is_rotation_block(std::size_t block) {
  return block == 64 || block == 256 || block == 1024 || block == 4096;
}

// The largest block that fits into what is left of a tile.
VS_FN std::size_t next_rotation_block(std::size_t block, std::size_t left) {
  while (block > left && block > kSmallestRotation) block /= 4;
  return block;
}

// The same from the end: blocks of a tile with `count` coordinates, of which the largest have
// `block`, lie at multiples of their sizes. So those of `size` and more end here.
VS_FN unsigned rotation_blocks_end(unsigned block, unsigned count, unsigned size) {
  return size > block ? 0 : count / size * size;
}

// Size of the block that a coordinate of the tile lies in.
VS_FN unsigned rotation_block_at(unsigned block, unsigned count, unsigned at) {
  unsigned size = block;
  while (size > kSmallestRotation && at >= rotation_blocks_end(block, count, size)) size /= 4;
  return size;
}

// How many blocks of the tile lie before that one.
VS_FN unsigned rotation_block_number(unsigned block, unsigned count, unsigned at) {
  unsigned before = 0;
  unsigned begin = 0;
  unsigned size = block;
  for (; size > kSmallestRotation && at >= rotation_blocks_end(block, count, size); size /= 4) {
    const unsigned end = rotation_blocks_end(block, count, size);
    before += (end - begin) / size;
    begin = end;
  }
  return before + (at - begin) / size;
}

// 1 / sqrt(block).
VS_FN float rotation_scale(std::size_t block) {
  return block == 4096 ? 0x1p-6f : block == 1024 ? 0x1p-5f : block == 256 ? 0x1p-4f : 0x1p-3f;
}

// A product with a gain, clamped to +-bound and rounded once.
VS_FN float bounded_float(double scaled, double bound) {
  const double below = scaled > bound ? bound : scaled;
  return static_cast<float>(below < -bound ? -bound : below);
}

// Counter of the signs of coordinates 128*run .. 128*run+127 of a group. The last word differs
// from that of rounding_counter(): a key used for both would still give unrelated bits.
VS_FN PhiloxBlock sign_counter(std::uint64_t run, std::uint32_t group) {
  return {{static_cast<std::uint32_t>(run), static_cast<std::uint32_t>(run >> 32), group, 1}};
}

// Bit c % 32 of word c / 32 % 4 says whether coordinate c changes its sign.
VS_FN PhiloxBlock sign_words(std::uint64_t run, std::uint32_t group, PhiloxKey key) {
  return philox4x32(sign_counter(run, group), key);
}

}  // namespace veilsum
