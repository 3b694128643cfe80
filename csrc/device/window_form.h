// How each update of a set lies in a window of tiles on a device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "aggregate/update_set.h"
#include "codec/layout.h"
#include "device/decode_launchers.h"
#include "device/device.h"
#include "device/mean_launchers.h"
#include "element/subsample.h"

namespace veilsum {

struct WindowForm {
  WindowCodes codes;  // of what is copied; values if it is packed in another way than as codes
  WindowScales scales;
  unsigned scale_block;                         // 0 without scales
  bool resident = false;                        // values lie on the device already
  WindowPacking packing = WindowPacking::none;  // what is copied, if kernels make values of it
  unsigned bits = 0;                            // of a packed code
  unsigned rotation_block = 0;
  unsigned keep = kTileBlocks64;  // blocks of 64 coordinates that a packed tile has at most

  bool operator==(const WindowForm&) const = default;
  bool packed() const { return packing != WindowPacking::none; }
  // What the kernels of the mean take: floats where a tile was packed.
  WindowCodes summed() const { return packed() ? WindowCodes::f32 : codes; }
  std::size_t code_bytes() const;   // of a whole tile, as it is copied, at most
  std::size_t scale_bytes() const;  // of a whole tile, at most
  std::size_t value_bytes() const;  // of a whole tile that was packed, as floats
  std::size_t tile_bytes() const { return code_bytes() + scale_bytes() + value_bytes(); }
};

// The format of a tensor's values and means.
MeanFormat mean_format(DType dtype);

// The form in which an update's tiles come to a device: where they lie if they are there already,
// its own codes if kernels decode them, else values.
WindowForm window_form(const Layout& layout, const CommittedUpdate& update, const Device& device);

// The same for those who take values: codes that sums would take as they are come packed.
WindowForm row_form(const Layout& layout, const CommittedUpdate& update, const Device& device);

// Writes a tile's codes, and its scales if it has some, of a form that is not packed. What is
// missing of a whole tile is zero.
void write_window_tile(const WindowForm& form, const CommittedUpdate& update, const Tile& tile,
                       std::byte* codes, std::byte* scales);

// Updates of one form, which one launch takes.
struct WindowBatch {
  WindowForm form;
  std::vector<std::size_t> updates;  // numbers in the set
};

// All updates of the set, at most `most_bytes` per tile and batch (but one update at least).
std::vector<WindowBatch> window_batches(const Layout& layout, const UpdateSnapshot& set,
                                        const Device& device, std::size_t most_bytes);

// --- for those who copy codes ---------------------------------------------------------

std::size_t bytes_of(WindowScales scales);

// Every packed tile's codes and scales begin at a multiple of 16 bytes.
constexpr std::size_t whole_words(std::size_t bytes) { return (bytes + 15) / 16 * 16; }

}  // namespace veilsum
