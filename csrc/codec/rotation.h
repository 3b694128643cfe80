// The public rotation of a run of coordinates: signs and a Hadamard transform, block by block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "element/philox.h"

namespace veilsum {

struct Rotation {
  std::size_t block;  // 64, 256, 1024 or 4096 coordinates; 0 does not rotate
  PhiloxKey key;      // public
  std::uint32_t group;
};

// Throws ConfigError unless `block` is 0 or one of the four sizes.
void require_rotation_block(std::size_t block);

// In place, for the coordinates from `first` on: whole tiles of 4096 counted from the start of
// the group, of which the last may be shorter. `first` is a multiple of 4096 and the count one
// of 64. Blocks lie one after the other in a tile; where the next one does not fit, smaller
// ones follow.
void rotate(const Rotation& rotation, std::uint64_t first, std::span<float> values);
void rotate(const Rotation& rotation, std::uint64_t first, std::span<double> values);

// The inverse.
void unrotate(const Rotation& rotation, std::uint64_t first, std::span<float> values);
void unrotate(const Rotation& rotation, std::uint64_t first, std::span<double> values);

}  // namespace veilsum
