// Kernels that make values of packed tiles: floats for sums over f32, and rows for rules.
//
// All pointers are to device memory, 16-byte aligned.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/launch.h"
#include "device/mean_launchers.h"
#include "element/philox.h"

namespace veilsum {

enum class WindowPacking : std::uint8_t {
  none,
  codes,  // as a window of the mean has them: DecodeTiles::kind
  ring,
  eden,
  topk,
};

// Scales that an eden tile has room for: one per rotation block, of which a short tile has most:
// three each of 1024, 256 and 64.
inline constexpr std::size_t kMostEdenBlocks = 9;

// Bits of an index into a tile, of a kept coordinate of topk.
inline constexpr unsigned kIndexBits = 12;

// One update's tile.
struct PackedTile {
  // Of the blocks of 64 coordinates that are there, one after the other; what is missing of 4096
  // coordinates are zeros. topk: indices, ascending.
  const unsigned char* codes;
  // eden: a float per rotation block; ring: a double per scale_block; topk: a value per index;
  // codes: as a window of the mean has them.
  const unsigned char* scales;
  const std::uint8_t* ends;  // where each 64 coordinates have a gap, counted from their first
  void* values;              // 4096; gaps and blocks that are not there come out as zeros
  std::uint64_t first;       // coordinate
  unsigned count;            // a multiple of 64 where there is a rotation
  PhiloxKey key;             // of the rotation
  std::uint64_t kept;        // bit b: block b of 64 is there; all of them without a subsample
  double gain;               // of values that are there
  unsigned entries;          // topk: how many indices
  unsigned skipped;          // topk: how many lie before the first: two share three bytes
};

// Tiles of one kind.
struct DecodeTiles {
  WindowPacking packing;
  WindowCodes kind;           // packing `codes`
  WindowScales scale_format;  // packing `codes` and, of values, topk
  unsigned bits;              // ring, eden: of a code
  unsigned rotation_block;    // 0 without a rotation
  unsigned scale_block;  // ring: a power of two from 64 on; codes: from 32 on, 0 without scales
  bool subsampled;       // whether blocks are not there
  bool wide;             // whether values are doubles, of which each is a float
  std::uint32_t group;
  std::size_t tiles;
  const PackedTile* tile;
};

struct DecodeLaunchers {
  int (*decode)(const Launch& launch, const DecodeTiles& job);
};

}  // namespace veilsum
