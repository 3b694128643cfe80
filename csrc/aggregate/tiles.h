// Walks over the tiles of a layout.
#pragma once

#include <cstddef>

#include "aggregate/update_reader.h"
#include "base/parallel.h"
#include "codec/layout.h"

namespace veilsum {

inline std::size_t count_tiles(const Layout& layout, int group) {
  return (layout.group_size(group) + kTile - 1) / kTile;
}

// Calls body(index, tile) for the tiles of a group, on several threads.
template <class Body>
void for_each_tile(const Layout& layout, int group, unsigned threads, const Body& body) {
  parallel_for(layout.group_size(group), kTile, threads, [&](const Range& range) {
    body(range.index, Tile{range.begin, range.end - range.begin});
  });
}

}  // namespace veilsum
