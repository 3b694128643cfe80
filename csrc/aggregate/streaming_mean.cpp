#include "aggregate/streaming_mean.h"

#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <utility>

#include "aggregate/scale.h"
#include "aggregate/tiles.h"
#include "aggregate/update_set.h"
#include "aggregate/write_means.h"
#include "base/error.h"
#include "base/float_environment.h"
#include "device/resident.h"

namespace veilsum {
namespace {

int exponent_for(const StreamingBounds& bounds) {
  if (!(bounds.max_abs >= 0x1p-900 && std::isfinite(bounds.max_abs)))
    throw ConfigError("streaming max_abs must be positive, finite and at least 2**-900, got " +
                      std::to_string(bounds.max_abs));
  if (bounds.max_total_weight < 1 || bounds.max_total_weight > kMaxTotalWeight)
    throw ConfigError("streaming max_total_weight must be 1 to 2**53-1, got " +
                      std::to_string(bounds.max_total_weight));
  return scale_exponent(exponent_above(bounds.max_abs) + exponent_above(bounds.max_total_weight),
                        1);
}

}  // namespace

StreamingMean::DeviceSums::DeviceSums(const DeviceOwner& on, const Layout& layout)
    : device(on),
      stream(*on),
      buffer(stream, count_tiles(layout, kFloatGroup) * kTile * sizeof(std::uint64_t)) {
  stream.clear(buffer.as<void>(), buffer.bytes());
  stream.synchronize();
}

StreamingMean::StreamingMean(const Layout& layout, unsigned threads, const StreamingBounds& bounds,
                             DeviceOwner device)
    : layout_(layout),
      threads_(threads),
      max_abs_(bounds.max_abs),
      exponent_(exponent_for(bounds)),
      contributors_(bounds.max_total_weight) {
  if (threads_ == 0) throw ConfigError("threads must be at least 1, got 0");
  integer_sums_.resize(layout_.group_size(kIntegerGroup));
  if (device == nullptr) {
    float_sums_.resize(layout_.group_size(kFloatGroup));
  } else {
    const OnDevice on(*device);
    device_sums_.emplace(device, layout_);
  }
}

void StreamingMean::require_bounds(const std::string& site,
                                   const std::vector<Screened>& tiles) const {
  for (const Screened& tile : tiles)
    if (tile.largest > max_abs_)
      throw PeerError(site,
                      "sent a value beyond the declared max_abs of " + std::to_string(max_abs_));
}

void StreamingMean::sum_tile(const UpdateReader& values, int group, const Tile& tile, Share share) {
  if (group == kFloatGroup)
    return values.add(tile, share.factor(exponent_), float_sums_.data() + tile.first);
  std::array<std::int64_t, kTile> room;
  values.read(tile, "", {room.data(), tile.count});  // screened before
  for (std::size_t i = 0; i < tile.count; ++i)
    integer_sums_[tile.first + i] += static_cast<__int128>(room[i]) * share.weight;
}

void StreamingMean::sum_on_host(Contributors::Arrival& arrival, const UpdateReader& values) {
  const Share share = arrival.share();
  std::vector<std::pair<int, Tile>> summed(count_tiles(layout_, kFloatGroup) +
                                           count_tiles(layout_, kIntegerGroup));
  std::atomic<std::size_t> count{0};
  try {
    for (const int group : {kFloatGroup, kIntegerGroup}) {
      if (group == kFloatGroup && device_sums_) continue;
      for_each_tile(layout_, group, threads_, [&](std::size_t, const Tile& tile) {
        sum_tile(values, group, tile, share);
        summed[count.fetch_add(1)] = {group, tile};
      });
    }
    arrival.count();
  } catch (...) {
    // A thread could not be started, or memory ran out. Rounding is symmetric, so the same
    // with the opposite weight takes exactly this away again.
    for (std::size_t i = 0; i < count; ++i)
      sum_tile(values, summed[i].first, summed[i].second, {-share.weight, share.gain});
    throw;
  }
}

// What a device has added when it fails, nobody knows, so nothing could be taken away again.
void StreamingMean::sum_on_device(Contributors::Arrival& arrival, const CommittedUpdate& update) {
  require_whole();
  broken_ = true;
  add_update_on(*device_sums_->device, layout_, update, arrival.share(), threads_, kept());
  sum_on_host(arrival, *update.values);
  broken_ = false;
}

void StreamingMean::require_whole() const {
  if (broken_)
    throw DeviceError("the sums on " + device_sums_->device->name() +
                          " are part old and part new since an error while an update was added",
                      "begin the aggregate anew");
}

KeptSums StreamingMean::kept() const {
  return {device_sums_->buffer.as<std::uint64_t>(), exponent_};
}

// Sums under the lock: integer sums of different updates could run side by side, but then a
// mean taken meanwhile would hold half an update.
void StreamingMean::sum(Contributors::Arrival& arrival, const CommittedUpdate& update) {
  require_bounds(arrival.site(), update.tiles);
  const auto lock = contributors_.lock();
  if (device_sums_)
    sum_on_device(arrival, update);
  else
    sum_on_host(arrival, *update.values);
}

void StreamingMean::add_tensors(const std::string& site, Share share, TensorData tensors) {
  const FloatEnvironment exact;
  Contributors::Arrival arrival(contributors_, site, share);
  sum(arrival, borrow_update(layout_, site, tensors, nullptr, threads_, Screening::magnitudes));
}

void StreamingMean::add_chunks(const std::string& site, Share share,
                               std::span<const ByteSpan> chunks, const UpdateForm& form) {
  const FloatEnvironment exact;
  Contributors::Arrival arrival(contributors_, site, share);
  sum(arrival,
      borrow_chunks(layout_, site, chunks, form, nullptr, threads_, Screening::magnitudes));
}

void StreamingMean::add_resident(const std::string& site, Share share, TensorData tensors) {
  const FloatEnvironment exact;
  Contributors::Arrival arrival(contributors_, site, share);
  sum(arrival, borrow_resident(layout_, site, device_sums_->device, tensors, nullptr, threads_,
                               Screening::magnitudes));
}

Contribution StreamingMean::contribution() const {
  const auto lock = contributors_.lock();
  return contributors_.counted();
}

Contribution StreamingMean::finish(const MeanSink& sink) const {
  const FloatEnvironment exact;
  const auto lock = contributors_.lock();
  require_whole();
  const Contribution contribution = contributors_.counted();
  require_updates(contribution.total_weight);
  const MeanDivisor divisor{exponent_, contribution.total_weight};
  if (device_sums_)
    take_kept_mean_on(*device_sums_->device, layout_, kept(), divisor.total_weight, threads_, sink);
  else
    for_each_tile(layout_, kFloatGroup, threads_, [&](std::size_t, const Tile& tile) {
      sink.floats(tile, float_sums_.data() + tile.first, divisor);
    });
  finish_integers(sink, divisor.total_weight);
  return contribution;
}

Contribution StreamingMean::finish_step(const ServerStep& step, const MeanSink& integers) const {
  const FloatEnvironment exact;
  const auto lock = contributors_.lock();
  require_whole();
  const Contribution contribution = contributors_.counted();
  require_updates(contribution.total_weight);
  step_kept_mean_on(*device_sums_->device, layout_, kept(), contribution.total_weight, threads_,
                    step);
  finish_integers(integers, contribution.total_weight);
  return contribution;
}

void StreamingMean::finish_integers(const MeanSink& sink, std::uint64_t total_weight) const {
  for_each_tile(layout_, kIntegerGroup, threads_, [&](std::size_t, const Tile& tile) {
    sink.integers(tile, integer_sums_.data() + tile.first, total_weight);
  });
}

}  // namespace veilsum
