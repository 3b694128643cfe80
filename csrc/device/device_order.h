// Rules that look at each coordinate alone, on a device.
#pragma once

#include "aggregate/mean_sink.h"
#include "device/device.h"
#include "rules/order_pass.h"

namespace veilsum {

// Group 1 of take_order() on a device: the same bits, each value rounded once to its tensor's
// dtype, handed to the sink. Rows are streamed through the device window by window.
//
// Throws ConfigError if tensors that are not ours were changed, and DeviceError.
void order_floats_on(const Device& device, const Layout& layout, const UpdateSnapshot& set,
                     const RowMix& mix, const OrderRule& rule, unsigned threads,
                     const MeanSink& sink);

}  // namespace veilsum
