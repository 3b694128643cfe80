// MeanAggregator: from committed updates, or streamed sums, to the mean.
#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "aggregate/mean.h"
#include "aggregate/rounding.h"
#include "aggregate/scale.h"
#include "base/error.h"
#include "base/float_environment.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

// Updates read side by side: as many streams as memory is read ahead for.
constexpr std::size_t kStreams = 12;

void require_updates(std::uint64_t total_weight) {
  if (total_weight == 0) throw ConfigError("there is no mean of no updates", "add one first");
}

[[noreturn]] void refuse_changed() {
  throw ConfigError("arrays were changed between add() and finish()",
                    "leave borrowed arrays alone until the mean is taken, or have them copied");
}

std::span<const std::int64_t> as_signed(const std::uint64_t* sums, std::size_t count) {
  return {reinterpret_cast<const std::int64_t*>(sums), count};
}

}  // namespace

void MeanAggregator::write_floats(const Tile& tile, const std::uint64_t* sums, int exponent,
                                  std::uint64_t total, MutableTensorData tensors) const {
  for_each_part(layout_, kFloatGroup, tile.first, tile.count, [&](const TensorPart& part) {
    const DType dtype = layout_.tensors()[part.tensor].dtype;
    write_means(as_signed(sums + part.offset, part.count), {exponent, total}, dtype,
                tensors[part.tensor] + part.element * dtype_size(dtype));
  });
}

// Keeping the low bytes is exact: a mean lies between the smallest and the largest value, and
// those fit the dtype.
void MeanAggregator::write_integers(const Tile& tile, const __int128* sums, std::uint64_t total,
                                    MutableTensorData tensors) const {
  for_each_part(layout_, kIntegerGroup, tile.first, tile.count, [&](const TensorPart& part) {
    const std::size_t size = dtype_size(layout_.tensors()[part.tensor].dtype);
    std::byte* out = tensors[part.tensor] + part.element * size;
    for (std::size_t i = 0; i < part.count; ++i) {
      const auto mean = static_cast<std::int64_t>(round_integer_mean(sums[part.offset + i], total));
      std::memcpy(out + i * size, &mean, size);
    }
  });
}

int MeanAggregator::tile_exponent(const Set& set, std::size_t tile) const {
  int e = -2000;  // below every exponent: a tile of zeros
  for (const auto& update : set)
    if (const double largest = update->tile_max[tile]; largest > 0)
      e = std::max(
          e, exponent_above(largest) + exponent_above(static_cast<std::uint64_t>(update->weight)));
  return scale_exponent(e, set.size());
}

// Where an update's values lie as floats they are read side by side with the others'; what
// else there is comes one by one. The scale rests on what was screened, which only holds if
// tensors that are not ours have not been changed since.
void MeanAggregator::sum_floats(const Set& set, std::size_t index, const Tile& tile, int exponent,
                                std::uint64_t* sums) const {
  std::vector<Stream> streams;
  for (const auto& update : set) {
    const double largest = update->tile_max[index];
    const double factor = scale_factor(update->weight, exponent);
    if (const WireFloat* values = update->values->floats(tile)) {
      streams.push_back({values, factor, static_cast<float>(largest)});
      continue;
    }
    if (!update->places.empty() && update->values->screen(tile, update->site) > largest)
      refuse_changed();
    if (largest > 0) update->values->add(tile, factor, sums);
  }
  const auto add_streams = kernels().codec.add_f32_streams;
  for (std::size_t begin = 0; begin < streams.size(); begin += kStreams)
    if (!add_streams(streams.data() + begin, std::min(kStreams, streams.size() - begin), tile.count,
                     sums))
      refuse_changed();
}

void MeanAggregator::finish_floats(const Set& set, std::uint64_t total,
                                   MutableTensorData tensors) const {
  for_each_tile(kFloatGroup, [&](std::size_t index, const Tile& tile) {
    std::array<std::uint64_t, kTile> sums{};
    const int exponent = tile_exponent(set, index);
    sum_floats(set, index, tile, exponent, sums.data());
    write_floats(tile, sums.data(), exponent, total, tensors);
  });
}

void MeanAggregator::finish_integers(const Set& set, std::uint64_t total,
                                     MutableTensorData tensors) const {
  for_each_tile(kIntegerGroup, [&](std::size_t, const Tile& tile) {
    std::vector<__int128> sums(tile.count);
    std::array<std::int64_t, kTile> room;
    for (const auto& update : set) {
      update->values->read(tile, "", {room.data(), tile.count});
      for (std::size_t i = 0; i < tile.count; ++i)
        sums[i] += static_cast<__int128>(room[i]) * update->weight;
    }
    write_integers(tile, sums.data(), total, tensors);
  });
}

// With the mutex held.
MeanAggregator::Finished MeanAggregator::counted() const {
  Finished finished{{}, total_weight_};
  for (const auto& [site, weight] : weights_) finished.sites.push_back(site);
  return finished;
}

MeanAggregator::Finished MeanAggregator::finish_streamed(MutableTensorData tensors) const {
  const std::lock_guard lock(mutex_);
  require_updates(total_weight_);
  for_each_tile(kFloatGroup, [&](std::size_t, const Tile& tile) {
    write_floats(tile, float_sums_.data() + tile.first, streaming_exponent_, total_weight_,
                 tensors);
  });
  for_each_tile(kIntegerGroup, [&](std::size_t, const Tile& tile) {
    write_integers(tile, integer_sums_.data() + tile.first, total_weight_, tensors);
  });
  return counted();
}

MeanAggregator::Finished MeanAggregator::finish(MutableTensorData tensors) const {
  const FloatEnvironment exact;
  if (streaming()) return finish_streamed(tensors);
  Set set;
  Finished finished;
  {
    const std::lock_guard lock(mutex_);
    finished = counted();
    for (const auto& [site, update] : updates_) set.push_back(update);
  }
  require_updates(finished.total_weight);
  finish_floats(set, finished.total_weight, tensors);
  finish_integers(set, finished.total_weight, tensors);
  return finished;
}

}  // namespace veilsum
