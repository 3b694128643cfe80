// The public rotation of values on a device.
#pragma once

#include <cstdint>
#include <span>

#include "codec/rotation.h"
#include "device/device.h"

namespace veilsum {

// rotate() of host memory on a device, or unrotate(): the same bits. Values go through device
// memory in pieces, the same however large the array is. Throws DeviceError.
void rotate_on(const Device& device, const Rotation& rotation, bool inverse, std::uint64_t first,
               std::span<float> values);
void rotate_on(const Device& device, const Rotation& rotation, bool inverse, std::uint64_t first,
               std::span<double> values);

}  // namespace veilsum
