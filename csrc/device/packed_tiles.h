// Tiles that come to a device as codes, and are made values there.
#pragma once

#include <cstddef>

#include "aggregate/update_set.h"
#include "codec/layout.h"
#include "device/device.h"
#include "device/places.h"
#include "device/window_form.h"
#include "device/windows.h"

namespace veilsum {

// Where the packed tiles of some updates lie in what one copy brings: nowhere if they are not
// packed. The codes come last, because topk updates have as many as their tiles happen to keep.
struct PackedPlaces {
  PackedPlaces(const WindowForm& form, std::size_t updates, std::size_t tiles, Places& places);

  std::size_t table, ends, codes;
};

// The memory of a window.
struct PackedMemory {
  std::byte* host;        // that is copied
  unsigned char* device;  // where to
  unsigned char* values;  // on the device: of the first update's tiles, then of the next one's
  bool wide;              // whether values are doubles
};

// A batch of packed updates. Refers to its arguments.
class PackedBatch {
 public:
  PackedBatch(const Layout& layout, const UpdateSnapshot& set, const WindowBatch& batch,
              unsigned threads)
      : layout_(layout), set_(set), batch_(batch), threads_(threads) {}

  // Writes the window's tiles to host memory. Returns where they end.
  std::size_t write(const Window& window, const PackedPlaces& at, const PackedMemory& memory) const;

  // Makes values of them, once they have been copied.
  void decode(const DeviceStream& stream, const Window& window, const PackedPlaces& at,
              const PackedMemory& memory) const;

 private:
  const CommittedUpdate& update(std::size_t number, const Window& window) const {
    return *set_.updates[batch_.updates[number / window.tiles]];
  }
  Tile tile(std::size_t number, const Window& window) const;
  void write_ends(const Window& window, std::uint8_t* ends) const;
  void write_table(const Window& window, PackedTile* table) const;
  std::size_t write_places(const Window& window, const PackedPlaces& at,
                           const PackedMemory& memory) const;

  const Layout& layout_;
  const UpdateSnapshot& set_;
  const WindowBatch& batch_;
  const unsigned threads_;
};

}  // namespace veilsum
