// The exact mean of committed updates on a device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "aggregate/mean_sink.h"
#include "aggregate/update_set.h"
#include "codec/layout.h"
#include "device/device.h"
#include "optimize/server_step.h"

namespace veilsum {

// Memory that one pass takes, whatever the size of the model and of the set.
struct PassMemory {
  std::size_t window_bytes = std::size_t{64} << 20;  // of updates, per window; three are in flight
  std::size_t window_tiles = 256;                    // most tiles of a window
};
// For tests: small windows.
void use_pass_memory(const PassMemory& memory);
const PassMemory& current_pass_memory();
// Most tiles of a window that has so many bytes for each: one at least.
std::size_t most_window_tiles(std::size_t tile_bytes);

// take_float_mean() on a device: the same bits. Updates are streamed through it window by window;
// `threads` host threads copy meanwhile. Codes of all codecs are decoded there.
//
// Throws as take_float_mean(), and DeviceError.
void take_float_mean_on(const Device& device, const Layout& layout, const UpdateSnapshot& set,
                        unsigned threads, const MeanSink& sink);

// The same, and means stay on the device, where they step model and moments window by window: the
// bits of ModelStepper. Throws as ServerStep::apply too.
void step_float_mean_on(const Device& device, const Layout& layout, const UpdateSnapshot& set,
                        unsigned threads, const ServerStep& step);

// Sums of whole tiles that stay on the device from update to update, one per coordinate of group 1,
// with one scale for all.
struct KeptSums {
  std::uint64_t* sums;
  int exponent;
};

// sums += round(value * share.factor(exponent)), as UpdateReader::add: the same bits. Throws
// DeviceError, and ConfigError if tensors that are not ours were changed; sums are then part old
// and part new.
void add_update_on(const Device& device, const Layout& layout, const CommittedUpdate& update,
                   const Share& share, unsigned threads, const KeptSums& sums);
// Means of such sums, to the sink or into a step. Throw DeviceError, and as ServerStep::apply.
void take_kept_mean_on(const Device& device, const Layout& layout, const KeptSums& sums,
                       std::uint64_t total_weight, unsigned threads, const MeanSink& sink);
void step_kept_mean_on(const Device& device, const Layout& layout, const KeptSums& sums,
                       std::uint64_t total_weight, unsigned threads, const ServerStep& step);

}  // namespace veilsum
