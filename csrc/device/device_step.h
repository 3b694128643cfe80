// One step of a server optimizer on a device, window by window.
#pragma once

#include <cstddef>
#include <vector>

#include "codec/layout.h"
#include "device/device.h"
#include "device/places.h"
#include "device/step_launchers.h"
#include "device/windows.h"
#include "optimize/server_step.h"

namespace veilsum {

// Steps one window after the other by means that lie on the device. Arrays of model and moments
// that lie there too are read and written in place. The others come from host memory and go back
// to it with the window, so that the memory taken does not grow with the model.
class StepWindow {
 public:
  // For windows of at most so many tiles. Refers to its arguments.
  StepWindow(const DeviceStream& stream, const ServerStep& step, std::size_t tiles,
             unsigned threads);

  // Starts a window, whose means are as WindowMeans has them.
  void begin(const Window& window, const void* means, bool wide);
  // When the stream was waited for: the window's arrays are the new ones. Throws as
  // ServerStep::apply if something does not fit.
  void finish();

 private:
  // Bytes that are copied between host memory and a window's.
  struct Piece {
    std::byte* host;
    std::byte* window;
    std::size_t bytes;
  };

  // Where things lie in a window's memory, on the host as on the device.
  struct MemoryPlaces {
    MemoryPlaces(const ServerStep& step, std::size_t tiles);

    Places places;
    std::size_t parts, part_of, unfit, values, first, second;
  };

  // Of one kind of arrays, one behind the other: how many bytes of a window are in use.
  struct Staged {
    std::size_t place;
    std::size_t bytes = 0;
  };

  void place_parts(const Window& window);
  StepPart place_part(const TensorPart& part);
  unsigned char* place_array(std::byte* tensor, bool resident, std::size_t element_size,
                             const TensorPart& part, Staged& staged, std::vector<Piece>& pieces);
  void copy_in() const;
  void copy_out() const;
  void copy_to_window(const std::vector<Piece>& pieces) const;
  void copy_to_host(const std::vector<Piece>& pieces) const;

  const DeviceStream& stream_;
  const ServerStep& step_;
  const unsigned threads_;
  const MemoryPlaces at_;
  const PinnedBuffer host_;
  const DeviceBuffer memory_;
  // Of the window that was begun.
  std::vector<std::size_t> tensors_;  // of its parts
  Staged values_, first_, second_;
  std::vector<Piece> model_pieces_, updated_pieces_, moment_pieces_;
};

}  // namespace veilsum
