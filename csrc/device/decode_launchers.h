// Kernels that make values of packed tiles, for sums over f32.
//
// All pointers are to device memory, 16-byte aligned.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/launch.h"
#include "element/philox.h"

namespace veilsum {

enum class WindowPacking : std::uint8_t { none, eden, ring };

// Scales that an eden tile has room for: one per rotation block, of which a short tile has most:
// three each of 1024, 256 and 64.
inline constexpr std::size_t kMostEdenBlocks = 9;

// One update's tile.
struct PackedTile {
  const unsigned char* codes;   // of 4096 coordinates; zeros from `count` on
  const unsigned char* scales;  // eden: a float per rotation block; ring: a double per scale_block
  const std::uint8_t* ends;     // where each 64 coordinates have a gap, counted from their first
  float* values;                // 4096; gaps come out as zeros
  std::uint64_t first;          // coordinate
  unsigned count;               // a multiple of 64 where there is a rotation
  PhiloxKey key;                // of the rotation
};

// Tiles of one kind.
struct DecodeTiles {
  WindowPacking packing;
  unsigned bits;            // of a code
  unsigned rotation_block;  // 0 without a rotation
  unsigned scale_block;     // ring: a power of two from 64 on
  std::uint32_t group;
  std::size_t tiles;
  const PackedTile* tile;
};

struct DecodeLaunchers {
  int (*decode)(const Launch& launch, const DecodeTiles& job);
};

}  // namespace veilsum
