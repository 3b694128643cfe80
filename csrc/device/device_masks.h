// Masked sums on a device: the bits below the ring's width are those of the CPU.
//
// Sums go through the device window by window and come back to where they were: memory does not
// grow with the model, nor with the number of uploads. After a DeviceError the sums are part new
// and part old, and must not be used.
#pragma once

#include <cstdint>
#include <span>

#include "device/device.h"
#include "masks/masks.h"
#include "masks/ring_chunks.h"

namespace veilsum {

// add_masks() on a device; bits above place.bits become zeros. Keys are cleared from its memory,
// also if it fails, unless it is lost. `threads` host threads copy.
//
// Throws as add_masks(), and DeviceError.
void add_masks_on(const Device& device, std::span<std::uint32_t> accumulator, const MaskKeys& keys,
                  const MaskPlace& place, unsigned threads);
void add_masks_on(const Device& device, std::span<std::uint64_t> accumulator, const MaskKeys& keys,
                  const MaskPlace& place, unsigned threads);

// fold_ring_chunks() on a device. Throws as that, and DeviceError.
void fold_ring_chunks_on(const Device& device, std::span<std::uint32_t> sums, Uploads uploads,
                         unsigned bits, std::uint64_t chunk_coordinates, unsigned threads);
void fold_ring_chunks_on(const Device& device, std::span<std::uint64_t> sums, Uploads uploads,
                         unsigned bits, std::uint64_t chunk_coordinates, unsigned threads);

}  // namespace veilsum
