// A site's masked upload on a device: the chunks, the counts and the errors are those of the CPU.
//
// Values go through the device window by window and come back as packed words: memory does not grow
// with the model. They and the words are cleared from its memory and from the host memory that they
// came through, also after an error, unless the device is lost.
#pragma once

#include <cstdint>
#include <span>

#include "codec/gather.h"
#include "codec/layout.h"
#include "device/device.h"
#include "masks/mask_keys.h"
#include "masks/ring_chunks.h"

namespace veilsum {

// Tensors of a layout in host memory, and on the device where `on_device` says so: those are read
// where they lie, on a multiple of their values' size. Tensors of group 2 are not looked at.
struct PlacedTensors {
  TensorData data;
  std::span<const std::uint8_t> on_device;  // 0 or 1
};

// write_step_chunks() on a device; plan.terms are those of `keys`. Throws as that, and DeviceError:
// `chunks` are then unusable.
std::uint64_t write_step_chunks_on(const Device& device, const Layout& layout,
                                   const PlacedTensors& tensors, const StepPlan& steps,
                                   const RingChunkPlan& plan, const MaskKeys& keys,
                                   std::span<std::byte* const> chunks);

// Values of coordinates [first, first + out.size()) of group 1, exactly; gaps are zero.
void read_values(const Device& device, const Layout& layout, const PlacedTensors& tensors,
                 std::uint64_t first, std::span<double> out);

}  // namespace veilsum
