#include "device/device_encode.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "aggregate/tiles.h"
#include "base/float_environment.h"
#include "base/parallel.h"
#include "codec/codecs.h"
#include "device/device_keys.h"
#include "device/device_mean.h"
#include "device/encode_launchers.h"
#include "device/places.h"
#include "device/secret_memory.h"
#include "device/window_form.h"
#include "device/windows.h"
#include "element/bits.h"
#include "masks/step_tally.h"
#include "masks/step_writer.h"

namespace veilsum {
namespace {

constexpr std::size_t kMaskTiles = kTile / kTileElements;
constexpr std::size_t kMostStretches = kTile / kTensorAlignment;  // of a tile
constexpr std::size_t kValueAlignment = 16;
constexpr std::size_t kStretchesAtOnce = 16;  // that one thread copies

std::size_t aligned(std::size_t bytes) {
  return (bytes + kValueAlignment - 1) / kValueAlignment * kValueAlignment;
}

// --- one upload ------------------------------------------------------------------------------

// What all windows share. Refers to its arguments.
struct EncodePass {
  const Layout& layout;
  const PlacedTensors& tensors;
  const StepPlan& steps;
  const RingChunkPlan& plan;
  const DeviceKeys& keys;
  const std::span<std::byte* const> chunks;
  StepTally& tally;

  std::uint64_t size() const { return plan.grid.group_size; }
  unsigned bits() const { return ring_bits(plan.grid.codec); }
};

struct EncodeRange {
  std::uint64_t first;  // whole tiles
  std::size_t count;    // coordinates
};

// Where the values of a stretch come from, and whose they are.
struct StretchSource {
  std::size_t tensor;
  const std::byte* values;
  std::size_t bytes;  // that are copied; 0 where values are on the device already
  std::size_t place;  // of the copy
};

// Where a window's parts lie: what is copied to the device, and what comes back.
struct EncodePlaces {
  EncodePlaces(const EncodePass& pass, std::size_t tiles)
      : secrets(input.add(sizeof(EncodeSecrets))),
        first_stretch(input.add(tiles * kMaskTiles * sizeof(std::uint32_t))),
        stretches(input.add(tiles * kMostStretches * sizeof(EncodeStretch))),
        values(input.add(tiles * (kTile * (needs_double(pass.layout) ? 8 : 4) +
                                  kMostStretches * kValueAlignment))),
        counts(output.add((tiles * kMostStretches + 1) * sizeof(EncodeCount))),
        packed(output.add(tiles * packed_size(kTile, pass.bits()))) {}

  Places input;
  std::size_t secrets, first_stretch, stretches, values;
  Places output;
  std::size_t counts, packed;
};

// --- windows ---------------------------------------------------------------------------------

// Host and device memory for one window, and the stream that it is worked on.
class EncodeSlot {
 public:
  EncodeSlot(const EncodePass& pass, const Device& device, std::size_t tiles)
      : pass_(pass),
        at_(pass, tiles),
        stream_(device),
        input_(device, at_.input.bytes()),
        output_(device, at_.output.bytes()),
        drain_(stream_),
        device_input_(stream_, at_.input.bytes()),
        device_output_(stream_, at_.output.bytes()) {}

  // Starts a window.
  void begin(const EncodeRange& range) {
    range_ = range;
    write_secrets();
    write_stretches();
    write_first_stretches();
    copy_values();
    stream_.to_device(device_input_.as<void>(), input_.as<void>(),
                      at_.stretches + sources_.size() * sizeof(EncodeStretch));
    stream_.to_device(device_place(at_.values), place(at_.values), value_bytes_);
    // Words too: where a device skips blocks and says nothing, zeros would leave the site, and not
    // what its memory held before.
    stream_.clear(device_output_.as<void>(), at_.output.bytes());
    const Device& device = stream_.device();
    device.check(device.api().encode->encode(stream_.launch(), window()), "launching an encoding",
                 value_bytes_);
    stream_.to_host(output_.as<void>(), device_output_.as<void>(), count_bytes());
    stream_.to_host(output_.as<std::byte>() + at_.packed,
                    device_output_.as<std::byte>() + at_.packed,
                    packed_size(range.count, pass_.bits()));
  }

  // Waits for it and takes words and counts. Does nothing if no window was begun.
  void finish() {
    if (range_.count == 0) return;
    stream_.synchronize();
    take_counts();
    take_words();
    close_chunks();
    range_ = {};
  }

 private:
  std::byte* place(std::size_t offset) const { return input_.as<std::byte>() + offset; }
  std::byte* device_place(std::size_t offset) const {
    return device_input_.as<std::byte>() + offset;
  }
  EncodeStretch* stretches() const {
    return reinterpret_cast<EncodeStretch*>(place(at_.stretches));
  }
  std::size_t count_bytes() const { return (sources_.size() + 1) * sizeof(EncodeCount); }

  void write_secrets() {
    const StepPlan& steps = pass_.steps;
    EncodeSecrets& secrets = *reinterpret_cast<EncodeSecrets*>(place(at_.secrets));
    secrets = {steps.rounding.value_or(PhiloxKey{}), 0, 0};
    if (steps.rotation.block == 0) return;
    secrets.rotated_limit = steps.rotated_limit;
    secrets.rotation_bound = rotation_bound(steps);
  }

  // Parts of tensors, cut where tiles and scales end.
  void write_stretches() {
    sources_.clear();
    value_bytes_ = 0;
    for (std::size_t begin = 0; begin < range_.count; begin += kTile) {
      const std::uint64_t first = range_.first + begin;
      const std::size_t count = std::min(kTile, range_.count - begin);
      for_each_part(pass_.layout, kFloatGroup, first, count, [&](const TensorPart& part) {
        pass_.steps.grid.for_each_stretch(
            first + part.offset, part.count,
            [&](std::size_t offset, std::size_t length, std::size_t entry) {
              add_stretch({part.tensor, part.element + offset, length, part.offset + offset}, begin,
                          entry);
            });
      });
    }
  }

  void add_stretch(const TensorPart& part, std::size_t begin, std::size_t entry) {
    const DType dtype = pass_.layout.tensors()[part.tensor].dtype;
    const std::byte* const values =
        pass_.tensors.data[part.tensor] + part.element * dtype_size(dtype);
    const bool here = pass_.tensors.on_device[part.tensor] == 0;
    const std::size_t bytes = here ? part.count * dtype_size(dtype) : 0;
    const std::size_t copy = at_.values + value_bytes_;
    const StepPlan& steps = pass_.steps;
    stretches()[sources_.size()] = {
        .values = reinterpret_cast<const unsigned char*>(here ? device_place(copy) : values),
        .gain = steps.gains[entry],
        .limit = steps.rotation.block == 0 ? steps.limits[entry] : 0,
        .first = static_cast<std::uint32_t>(begin + part.offset),
        .count = static_cast<std::uint32_t>(part.count),
        .format = mean_format(dtype)};
    sources_.push_back({part.tensor, values, bytes, copy});
    value_bytes_ += aligned(bytes);
  }

  void write_first_stretches() {
    auto* const first = reinterpret_cast<std::uint32_t*>(place(at_.first_stretch));
    const std::size_t tiles = (range_.count + kTileElements - 1) / kTileElements;
    std::uint32_t number = 0;
    for (std::size_t tile = 0; tile < tiles; ++tile) {
      while (number < sources_.size() &&
             stretches()[number].first + stretches()[number].count <= tile * kTileElements)
        ++number;
      first[tile] = number;
    }
  }

  void copy_values() {
    parallel_for(sources_.size(), kStretchesAtOnce, pass_.plan.threads, [&](const Range& range) {
      for (std::size_t i = range.begin; i < range.end; ++i)
        if (sources_[i].bytes != 0)
          std::memcpy(place(sources_[i].place), sources_[i].values, sources_[i].bytes);
    });
  }

  EncodeWindow window() const {
    const StepPlan& steps = pass_.steps;
    return {
        .first = range_.first,
        .count = static_cast<std::uint32_t>(range_.count),
        .group = pass_.plan.grid.group,
        .stretch = reinterpret_cast<const EncodeStretch*>(device_place(at_.stretches)),
        .stretches = static_cast<std::uint32_t>(sources_.size()),
        .first_stretch = reinterpret_cast<const std::uint32_t*>(device_place(at_.first_stretch)),
        .secrets = reinterpret_cast<const EncodeSecrets*>(device_place(at_.secrets)),
        .stochastic = steps.rounding.has_value(),
        .rotation_block = static_cast<unsigned>(steps.rotation.block),
        .rotation_key = steps.rotation.key,
        .bits = pass_.bits(),
        .aes = pass_.keys.aes(),
        .keys = pass_.keys.place(),
        .added = pass_.keys.added(),
        .subtracted = pass_.keys.subtracted(),
        .packed = device_output_.as<unsigned char>() + at_.packed,
        .counts = reinterpret_cast<EncodeCount*>(device_output_.as<std::byte>() + at_.counts)};
  }

  void take_counts() {
    const auto* const counts =
        reinterpret_cast<const EncodeCount*>(output_.as<std::byte>() + at_.counts);
    for (std::size_t i = 0; i < sources_.size(); ++i)
      pass_.tally.add(sources_[i].tensor, counts[i].not_finite, counts[i].beyond);
    pass_.tally.add_rotated(counts[sources_.size()].beyond);
  }

  // No tile is in two chunks.
  void take_words() {
    const std::byte* const packed = output_.as<std::byte>() + at_.packed;
    parallel_for(range_.count, kTile, pass_.plan.threads, [&](const Range& range) {
      const ChunkGrid& grid = pass_.plan.grid;
      const std::uint64_t first = range_.first + range.begin;
      const ChunkHeader header = grid.header(first / grid.chunk_coordinates);
      std::byte* const codes =
          pass_.chunks[header.index] + codes_offset(header.codec, header.count);
      std::memcpy(codes + packed_size(first - header.first, pass_.bits()),
                  packed + packed_size(range.begin, pass_.bits()),
                  packed_size(range.end - range.begin, pass_.bits()));
    });
  }

  // Of which the last words came with this window: windows are finished in order.
  void close_chunks() {
    const ChunkGrid& grid = pass_.plan.grid;
    const std::uint64_t end = range_.first + range_.count;
    const std::uint64_t from = range_.first / grid.chunk_coordinates;
    const std::uint64_t to = end == grid.group_size ? grid.chunks() : end / grid.chunk_coordinates;
    parallel_for(to - from, 1, pass_.plan.threads, [&](const Range& range) {
      const ChunkHeader header = grid.header(from + range.index);
      std::byte* const chunk = pass_.chunks[header.index];
      write_chunk(header, {},
                  {chunk + codes_offset(header.codec, header.count),
                   packed_size(header.count, pass_.bits())},
                  chunk);
    });
  }

  const EncodePass& pass_;
  const EncodePlaces at_;
  const DeviceStream stream_;
  const WipedPinnedBuffer input_;
  const WipedPinnedBuffer output_;
  const DrainAtExit drain_;  // an error may have come between a copy and the wait for it
  const ClearedDeviceBuffer device_input_;
  const ClearedDeviceBuffer device_output_;
  EncodeRange range_{};
  std::vector<StretchSource> sources_;  // of the window's stretches, by number
  std::size_t value_bytes_ = 0;
};

void encode_windows(const EncodePass& pass, const Device& device) {
  const std::size_t all = (pass.size() + kTile - 1) / kTile;
  const std::size_t tiles =
      std::min(all, most_window_tiles(std::max(EncodePlaces(pass, 1).input.bytes(),
                                               EncodePlaces(pass, 1).output.bytes())));
  walk_windows<EncodeSlot>(
      pass.size(), tiles * kTile,
      [&](std::optional<EncodeSlot>& slot) { slot.emplace(pass, device, tiles); },
      [](EncodeSlot& slot, std::size_t first, std::size_t count) { slot.begin({first, count}); });
}

}  // namespace

std::uint64_t write_step_chunks_on(const Device& device, const Layout& layout,
                                   const PlacedTensors& tensors, const StepPlan& steps,
                                   const RingChunkPlan& plan, const MaskKeys& keys,
                                   std::span<std::byte* const> chunks) {
  require_step_plan(layout, steps, ring_bits(plan.grid.codec));
  const FloatEnvironment exact;
  StepTally tally(layout, steps);
  if (plan.grid.group_size != 0) {
    const OnDevice on(device);
    const DeviceKeys ready(device, keys.generator(), keys.terms());
    encode_windows({layout, tensors, steps, plan, ready, chunks, tally}, device);
  }
  return tally.clamped();
}

void read_values(const Device& device, const Layout& layout, const PlacedTensors& tensors,
                 std::uint64_t first, std::span<double> out) {
  const OnDevice on(device);
  const DeviceStream stream(device);
  std::ranges::fill(out, 0.0);
  // Pinned: a copy to other memory goes through memory of the driver's, which nobody clears.
  const WipedPinnedBuffer room(device, out.size_bytes());
  const DrainAtExit drain(stream);
  for_each_part(layout, kFloatGroup, first, out.size(), [&](const TensorPart& part) {
    const DType dtype = layout.tensors()[part.tensor].dtype;
    const std::size_t bytes = part.count * dtype_size(dtype);
    const std::byte* values = tensors.data[part.tensor] + part.element * dtype_size(dtype);
    if (tensors.on_device[part.tensor] != 0) {
      stream.to_host(room.as<void>(), values, bytes);
      stream.synchronize();
      values = room.as<std::byte>();
    }
    widen(dtype, values, out.subspan(part.offset, part.count));
  });
}

}  // namespace veilsum
