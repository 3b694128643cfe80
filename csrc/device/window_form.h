// How each update of a set lies in a window of tiles on a device.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "aggregate/update_set.h"
#include "codec/layout.h"
#include "device/decode_launchers.h"
#include "device/device.h"
#include "device/mean_launchers.h"

namespace veilsum {

struct WindowForm {
  WindowCodes codes;
  WindowScales scales;
  unsigned scale_block;                         // 0 without scales
  bool resident = false;                        // values lie on the device already
  WindowPacking packing = WindowPacking::none;  // what is copied, if kernels make the codes of it
  unsigned bits = 0;                            // of a packed code
  unsigned rotation_block = 0;

  bool operator==(const WindowForm&) const = default;
  bool packed() const { return packing != WindowPacking::none; }
  std::size_t code_bytes() const;   // of a whole tile, as it is copied
  std::size_t scale_bytes() const;  // of a whole tile
  std::size_t value_bytes() const;  // of a whole tile that was packed
  std::size_t tile_bytes() const { return code_bytes() + scale_bytes() + value_bytes(); }
};

// The format of a tensor's values and means.
MeanFormat mean_format(DType dtype);

// The form in which an update's tiles come to a device: where they lie if they are there already,
// its own codes if kernels decode them, else values.
WindowForm window_form(const Layout& layout, const CommittedUpdate& update, const Device& device);

// Writes a tile's codes, and its scales if it has some. What is missing of a whole tile is zero.
void write_window_tile(const WindowForm& form, const CommittedUpdate& update, const Tile& tile,
                       std::byte* codes, std::byte* scales);

// A packed tile, without its places.
PackedTile packed_tile(const WindowForm& form, const CommittedUpdate& update, const Tile& tile);

// Updates of one form that are summed by one launch.
struct WindowBatch {
  WindowForm form;
  std::vector<std::size_t> updates;  // numbers in the set
};

// All updates of the set, at most `most_bytes` per tile and batch (but one update at least).
std::vector<WindowBatch> window_batches(const Layout& layout, const UpdateSnapshot& set,
                                        const Device& device, std::size_t most_bytes);

}  // namespace veilsum
