// Updates as rows of values that windows of tiles bring to a device: what rules but the mean see.
#pragma once

#include <cstddef>
#include <vector>

#include "aggregate/tiles.h"
#include "aggregate/update_set.h"
#include "codec/layout.h"
#include "device/device.h"
#include "device/mean_launchers.h"
#include "device/packed_tiles.h"
#include "device/window_form.h"
#include "device/windows.h"

namespace veilsum {

// One format for so many coordinates: no tensor starts within them.
inline constexpr std::size_t kFormatBlock = kTensorAlignment;

// One walk over a set. Refers to its arguments.
struct RowPass {
  RowPass(const Device& device, const Layout& layout, const UpdateSnapshot& set, unsigned threads,
          std::vector<std::size_t> updates);

  Tile tile(std::size_t index) const { return tile_at(layout, kFloatGroup, index); }
  std::size_t value_bytes() const { return wide ? sizeof(double) : sizeof(float); }
  std::size_t tile_bytes() const { return kTile * value_bytes(); }
  // Device memory that a tile of all updates takes: values, and codes that they are made of.
  std::size_t tile_memory() const;

  // The formats of the window's tensors, one per 64 coordinates.
  void write_formats(const Window& window, MeanFormat* formats) const;

  const Layout& layout;
  const UpdateSnapshot& set;
  const unsigned threads;
  const bool wide;
  const std::size_t tiles;                 // of the layout
  const std::vector<std::size_t> updates;  // numbers in the set of those that are looked at
  // The same by form; rows lie in this order in a window. Those whose values are copied come first.
  const std::vector<WindowBatch> batches;
  std::vector<std::size_t> places;  // of number k of `updates` among the rows
};

// The rows of one window in device memory. Updates in host memory are copied, those in device
// memory gathered; codes are copied as they are and decoded where they arrive.
class RowWindow {
 public:
  // For windows of at most `tiles` tiles. Refers to its arguments.
  RowWindow(const RowPass& pass, const DeviceStream& stream, std::size_t tiles);

  // Brings a window. What is brought before must have been waited for. Throws ConfigError if
  // tensors in host memory that are not ours were changed.
  void bring(const Window& window);

  // The values of number k of the pass's updates, tile after tile, the last one padded with zeros.
  unsigned char* row(std::size_t k, std::size_t tiles) const {
    return rows_.as<unsigned char>(pass_.places[k] * tiles * pass_.tile_bytes());
  }

  // Throws ConfigError if tensors in device memory were changed. The windows must have been waited
  // for.
  void require_unchanged() const;

 private:
  void bring_values(const Window& window, const WindowBatch& batch, std::size_t first_row);
  void bring_packed(const Window& window, const WindowBatch& batch, std::size_t first_row,
                    Places& places);
  void bring_resident(const Window& window, const WindowBatch& batch, std::size_t first_row,
                      Places& places);
  void write_gathered(const Window& window, const CommittedUpdate& update, unsigned char* row,
                      GatheredTile* tiles) const;

  const RowPass& pass_;
  const DeviceStream& stream_;
  const PinnedBuffer host_values_;
  const PinnedBuffer input_;
  const DeviceBuffer device_input_;
  const DeviceBuffer rows_;
  const DeviceBuffer device_beyond_;  // whether a value is larger than those that were screened
  const PinnedBuffer beyond_;
};

}  // namespace veilsum
