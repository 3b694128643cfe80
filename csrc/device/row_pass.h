// Updates as rows of values that windows of tiles bring to a device: what rules but the mean see.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "aggregate/tiles.h"
#include "aggregate/update_set.h"
#include "codec/layout.h"
#include "device/device.h"
#include "device/mean_launchers.h"
#include "device/windows.h"

namespace veilsum {

// One walk over a set. Refers to its arguments.
struct RowPass {
  RowPass(const Layout& layout, const UpdateSnapshot& set, unsigned threads,
          std::vector<std::size_t> updates);

  Tile tile(std::size_t index) const;
  std::size_t value_bytes() const { return wide ? sizeof(double) : sizeof(float); }
  std::size_t tile_bytes() const { return kTile * value_bytes(); }
  // Of all updates of the walk.
  std::size_t window_bytes(std::size_t tiles) const {
    return updates.size() * tiles * tile_bytes();
  }
  // Where the values of number k of `updates` start in them.
  std::size_t row_place(std::size_t k, std::size_t tiles) const { return k * tiles * tile_bytes(); }

  // Writes all values of a window, row after row, the last tile padded with zeros. Throws
  // ConfigError if tensors that are not ours were changed.
  void write(const Window& window, std::byte* values) const;
  // The formats of the window's tensors, one per 64 coordinates.
  void write_formats(const Window& window, MeanFormat* formats) const;

  const Layout& layout;
  const UpdateSnapshot& set;
  const unsigned threads;
  const bool wide;
  const std::size_t tiles;                 // of the layout
  const std::vector<std::size_t> updates;  // numbers in the set of those that are looked at
};

// One format for so many coordinates: no tensor starts within them.
inline constexpr std::size_t kFormatBlock = kTensorAlignment;

}  // namespace veilsum
