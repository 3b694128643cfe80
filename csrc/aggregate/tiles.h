// Walks over the tiles of a layout.
#pragma once

#include <algorithm>
#include <cstddef>

#include "aggregate/update_reader.h"
#include "base/parallel.h"
#include "codec/layout.h"

namespace veilsum {

inline std::size_t count_tiles(const Layout& layout, int group) {
  return (layout.group_size(group) + kTile - 1) / kTile;
}

inline Tile tile_at(const Layout& layout, int group, std::size_t index) {
  const std::uint64_t first = std::uint64_t{index} * kTile;
  return {first, static_cast<std::size_t>(
                     std::min<std::uint64_t>(kTile, layout.group_size(group) - first))};
}

// Tiles that one thread takes at a time: long enough that memory is read ahead, and short
// enough that models of a million values keep several threads busy.
inline constexpr std::size_t kTilesAtOnce = 8;

// Calls body(index, tile) for the tiles of a group, on several threads.
template <class Body>
void for_each_tile(const Layout& layout, int group, unsigned threads, const Body& body) {
  parallel_for(layout.group_size(group), kTilesAtOnce * kTile, threads, [&](const Range& range) {
    for (std::size_t begin = range.begin; begin < range.end; begin += kTile)
      body(begin / kTile, Tile{begin, std::min(kTile, range.end - begin)});
  });
}

}  // namespace veilsum
