// Which blocks of a tile a subsampled update keeps (docs/format.md, "Subsampled updates").
//
// Everything here follows from a public key.
#pragma once

#include <cstdint>

#include "element/annotate.h"
#include "element/philox.h"

namespace veilsum {

inline constexpr unsigned kTileBlocks64 = 64;  // blocks of 64 coordinates in a tile of 4096

// How many of a tile's blocks are kept, if a whole tile keeps `keep` of 64. A shorter tile keeps
// no smaller share, and so at least one block.
VS_FN unsigned kept_count(unsigned blocks, unsigned keep) {
  return (blocks * keep + kTileBlocks64 - 1) / kTileBlocks64;
}

// Counter of the draws for blocks 4*quad .. 4*quad+3, counted from the start of the group. The
// last word tells them from what else is drawn by coordinate.
VS_FN PhiloxBlock subsample_counter(std::uint64_t quad, std::uint32_t group) {
  return {{static_cast<std::uint32_t>(quad), static_cast<std::uint32_t>(quad >> 32), group, 2}};
}

// Bit b is set if block b of the tile is kept. Blocks are asked in order (selection sampling,
// Knuth, The Art of Computer Programming 2, 3.4.2, algorithm S): one is kept with the probability
// (how many are missing) / (how many are left).
VS_FN std::uint64_t kept_blocks(PhiloxKey key, std::uint64_t tile, unsigned blocks, unsigned keep,
                                std::uint32_t group) {
  unsigned missing = kept_count(blocks, keep);
  std::uint64_t kept = 0;
  PhiloxBlock draws = {};
  for (unsigned block = 0; block < blocks; ++block) {
    if (block % 4 == 0) draws = philox4x32(subsample_counter(16 * tile + block / 4, group), key);
    const std::uint64_t draw = std::uint64_t{draws.word[block % 4]} * (blocks - block);
    if (draw >= std::uint64_t{missing} << 32) continue;
    kept |= std::uint64_t{1} << block;
    --missing;
  }
  return kept;
}

}  // namespace veilsum
