// Inner products of all pairs of updates, on a device.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "aggregate/update_set.h"
#include "codec/layout.h"
#include "device/device.h"

namespace veilsum {

// Takes the sums of one range of 65536 coordinates: of rows i >= j at i * (i + 1) / 2 + j.
using RangeProducts = std::function<void(const double* products)>;

// Inner products of updates times their factors, range by range, each added in double as the CPU's
// kernels add them. Updates are streamed through the device window by window.
//
// Throws ConfigError if tensors that are not ours were changed, and DeviceError.
void multiply_rows_on(const Device& device, const Layout& layout, const UpdateSnapshot& set,
                      std::span<const double> factors, unsigned threads, const RangeProducts& take);

}  // namespace veilsum
