#include "aggregate/mean.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "aggregate/rounding.h"
#include "base/error.h"
#include "base/float_environment.h"
#include "base/parallel.h"
#include "kernels/dispatch.h"
#include "update/encode.h"

namespace veilsum {
namespace {

constexpr std::int64_t kMaxWeight = (std::int64_t{1} << 31) - 1;
// With it a total weight stays below 2^53 and is exact as a double.
constexpr std::size_t kMaxUpdates = std::size_t{1} << 22;
constexpr std::uint64_t kMaxTotalWeight = (std::uint64_t{1} << 53) - 1;

// The largest scale exponent: weight * 2^kMaxExponent is finite for every weight. Only f64
// tiles whose values are all below 2^-900 would ask for more; their sums are then exact to
// 2^-960, which is far below what any value near 2^-900 / 2^53 needs.
constexpr int kMaxExponent = 960;

// Updates read side by side: as many streams as memory is read ahead for.
constexpr std::size_t kStreams = 12;

// e such that |value| < 2^e.
int exponent_above(double value) {
  int exponent = 0;
  std::frexp(value, &exponent);
  return exponent;
}

// s such that summing `count` addends round(w * x * 2^s), each with w * |x| < 2^e, stays
// inside 64 bits.
//
// An addend is at most w * |x| * 2^s * (1 + 2^-53) + 1/2, or, for int8 values, whose factor
// per block is rounded instead, w * |x| * 2^s * (1 + 2^-53) + 127/2. With s = 62 - e -
// ceil(log2 count) the first terms add up to less than 2^62 * (1 + 2^-53); with at most 2^22
// updates, or a total weight below 2^53 of weights from 1 on, the second ones to less than
// 2^53 * 64 = 2^59. Together that is below 2^63.
//
// e is at most 31 + 1024 and count at most 2^22 (53 + 1024 and 1 when streaming), so s is at
// least -1015 and weight * 2^s is never subnormal.
int scale_exponent(int e, std::size_t count) {
  return std::min(62 - e - static_cast<int>(std::bit_width(count - 1)), kMaxExponent);
}

double factor_of(std::int64_t weight, int exponent) {
  return std::ldexp(static_cast<double>(weight), exponent);  // exact
}

int streaming_exponent(const MeanSettings& settings) {
  if (settings.streaming_max_abs == 0) return 0;
  if (!(settings.streaming_max_abs >= 0x1p-900 && std::isfinite(settings.streaming_max_abs)))
    throw ConfigError("streaming max_abs must be a positive, finite number, got " +
                      std::to_string(settings.streaming_max_abs));
  const std::uint64_t weight = settings.streaming_max_total_weight;
  if (weight < 1 || weight > kMaxTotalWeight)
    throw ConfigError("streaming max_total_weight must be 1 to 2**53-1, got " +
                      std::to_string(weight));
  return scale_exponent(
      exponent_above(settings.streaming_max_abs) + static_cast<int>(std::bit_width(weight)), 1);
}

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

// A site whose update is being looked at, so that it cannot arrive twice at once and so that
// the bound on the total weight holds for what is under way too.
class MeanAggregator::Arrival {
 public:
  Arrival(MeanAggregator& owner, const std::string& site, std::int64_t weight)
      : owner_(owner), site_(site), weight_(weight) {
    if (weight < 1 || weight > kMaxWeight)
      throw PeerError(site, "has weight " + std::to_string(weight) + ", allowed is 1 to 2**31-1");
    const std::lock_guard lock(owner.mutex_);
    if (owner.weights_.contains(site)) throw PeerError(site, "has already added an update");
    require_room();
    if (!owner.arriving_.insert(site).second)
      throw PeerError(site, "is adding an update in another thread");
    owner.arriving_weight_ += static_cast<std::uint64_t>(weight);
  }
  ~Arrival() {
    const std::lock_guard lock(owner_.mutex_);
    owner_.arriving_.erase(site_);
    owner_.arriving_weight_ -= static_cast<std::uint64_t>(weight_);
  }
  Arrival(const Arrival&) = delete;
  Arrival& operator=(const Arrival&) = delete;

  const std::string& site() const { return site_; }
  std::int64_t weight() const { return weight_; }
  // With the mutex held. Allocates first: what follows cannot fail.
  void count() {
    owner_.weights_.emplace(site_, weight_);
    owner_.total_weight_ += static_cast<std::uint64_t>(weight_);
  }

 private:
  void require_room() const {
    const std::uint64_t total = owner_.total_weight_ + owner_.arriving_weight_ +
                                static_cast<std::uint64_t>(weight_);
    if (owner_.streaming() && total > owner_.settings_.streaming_max_total_weight)
      throw PeerError(site_, "has weight " + std::to_string(weight_) +
                                 ", which passes the declared total weight of " +
                                 std::to_string(owner_.settings_.streaming_max_total_weight));
    if (owner_.weights_.size() + owner_.arriving_.size() >= kMaxUpdates)
      throw PeerError(site_, "is one too many: a mean has at most 2**22 updates");
  }

  MeanAggregator& owner_;
  const std::string site_;
  const std::int64_t weight_;
};

MeanAggregator::MeanAggregator(Layout layout, MeanSettings settings)
    : layout_(std::move(layout)),
      settings_(std::move(settings)),
      streaming_exponent_(streaming_exponent(settings_)) {
  if (settings_.threads == 0) throw ConfigError("threads must be at least 1, got 0");
  if (!streaming()) return;
  float_sums_.resize(layout_.group_size(kFloatGroup));
  integer_sums_.resize(layout_.group_size(kIntegerGroup));
}

template <class Body>
void MeanAggregator::for_each_tile(int group, const Body& body) const {
  parallel_for(layout_.group_size(group), kTile, settings_.threads, [&](const Range& range) {
    body(range.index, Tile{range.begin, range.end - range.begin});
  });
}

std::size_t MeanAggregator::tiles(int group) const {
  return (layout_.group_size(group) + kTile - 1) / kTile;
}

// --- adding ----------------------------------------------------------------------

std::vector<double> MeanAggregator::screen(const UpdateReader& values,
                                           const std::string& site) const {
  std::vector<double> tile_max(tiles(kFloatGroup));
  for_each_tile(kFloatGroup, [&](std::size_t index, const Tile& tile) {
    tile_max[index] = values.screen(tile, site);
  });
  for_each_tile(kIntegerGroup, [&](std::size_t, const Tile& tile) {
    std::array<std::int64_t, kTile> room;
    values.read(tile, site, {room.data(), tile.count});
  });
  return tile_max;
}

MeanAggregator::Committed MeanAggregator::keep(const std::string& site,
                                               TensorData tensors) const {
  StoredBytes kept(settings_.spool, site, kept_bytes(layout_));
  std::vector<double> tile_max(tiles(kFloatGroup));
  for_each_tile(kFloatGroup, [&](std::size_t index, const Tile& tile) {
    tile_max[index] = keep_floats(layout_, tensors, tile, site, kept);
  });
  for_each_tile(kIntegerGroup, [&](std::size_t, const Tile& tile) {
    keep_integers(layout_, tensors, tile, site, kept);
  });
  kept.seal();
  auto values = read_kept(layout_, kept.bytes());
  return {site, 0, nullptr, {}, std::move(kept), std::move(tile_max), std::move(values)};
}

// The copy is what is checked: the caller could change its own bytes afterwards.
MeanAggregator::Committed MeanAggregator::keep(const std::string& site,
                                               std::span<const ByteSpan> chunks,
                                               const UpdateForm& form) const {
  const std::vector<std::size_t> sizes =
      update_chunk_sizes(layout_, {form, 0, std::nullopt, settings_.threads});
  require_sizes(chunks, sizes);
  StoredBytes kept(settings_.spool, site, std::accumulate(sizes.begin(), sizes.end(), std::size_t{0}));
  for (std::size_t offset = 0; const ByteSpan chunk : chunks) {
    kept.write(offset, chunk);
    offset += chunk.size();
  }
  kept.seal();
  std::vector<ByteSpan> copies;
  for (std::size_t begin = 0; const std::size_t size : sizes) {
    copies.push_back(kept.bytes().subspan(begin, size));
    begin += size;
  }
  Committed update = borrow(site, copies, form, nullptr);
  return {site,
          0,
          nullptr,
          {},
          std::move(kept),
          std::move(update.tile_max),
          std::move(update.values)};
}

MeanAggregator::Committed MeanAggregator::borrow(const std::string& site, TensorData tensors,
                                                 Owner owner) const {
  std::vector<const std::byte*> places(tensors.begin(), tensors.end());
  auto values = read_tensors(layout_, places);  // moving the vector does not move its elements
  auto tile_max = screen(*values, site);
  return {site,           0, std::move(owner), std::move(places), StoredBytes("", site, 0),
          std::move(tile_max), std::move(values)};
}

MeanAggregator::Committed MeanAggregator::borrow(const std::string& site,
                                                 std::span<const ByteSpan> chunks,
                                                 const UpdateForm& form, Owner owner) const {
  auto values = read_chunks(layout_, check_update(layout_, chunks, form), form);
  auto tile_max = screen(*values, site);
  return {site, 0, std::move(owner), {}, StoredBytes("", site, 0), std::move(tile_max),
          std::move(values)};
}

void MeanAggregator::commit(Arrival& arrival, Committed update) {
  update.weight = arrival.weight();
  auto shared = std::make_shared<const Committed>(std::move(update));
  const std::lock_guard lock(mutex_);
  const auto place = updates_.emplace(arrival.site(), std::move(shared)).first;
  try {
    arrival.count();
  } catch (...) {
    updates_.erase(place);
    throw;
  }
}

void MeanAggregator::require_bounds(const std::string& site,
                                    const std::vector<double>& tile_max) const {
  for (const double largest : tile_max)
    if (largest > settings_.streaming_max_abs)
      throw PeerError(site, "sent a value beyond the declared max_abs of " +
                                std::to_string(settings_.streaming_max_abs));
}

void MeanAggregator::sum_tile(const UpdateReader& values, int group, const Tile& tile,
                              std::int64_t weight) {
  if (group == kFloatGroup)
    return values.add(tile, factor_of(weight, streaming_exponent_),
                      float_sums_.data() + tile.first);
  std::array<std::int64_t, kTile> room;
  values.read(tile, "", {room.data(), tile.count});  // screened before
  for (std::size_t i = 0; i < tile.count; ++i)
    integer_sums_[tile.first + i] += static_cast<__int128>(room[i]) * weight;
}

// Sums under the mutex: integer sums of different updates could run side by side, but then a
// mean taken meanwhile would hold half an update.
void MeanAggregator::stream(Arrival& arrival, std::int64_t weight, const UpdateReader& values) {
  require_bounds(arrival.site(), screen(values, arrival.site()));
  std::vector<std::pair<int, Tile>> summed(tiles(kFloatGroup) + tiles(kIntegerGroup));
  std::atomic<std::size_t> count{0};
  const std::lock_guard lock(mutex_);
  try {
    for (const int group : {kFloatGroup, kIntegerGroup})
      for_each_tile(group, [&](std::size_t, const Tile& tile) {
        sum_tile(values, group, tile, weight);
        summed[count.fetch_add(1)] = {group, tile};
      });
    arrival.count();
  } catch (...) {
    // A thread could not be started, or memory ran out. Rounding is symmetric, so the same
    // with the opposite weight takes exactly this away again.
    for (std::size_t i = 0; i < count; ++i)
      sum_tile(values, summed[i].first, summed[i].second, -weight);
    throw;
  }
}

void MeanAggregator::add_tensors(const std::string& site, std::int64_t weight,
                                 TensorData tensors, Owner owner) {
  const FloatEnvironment exact;
  Arrival arrival(*this, site, weight);
  if (streaming())
    stream(arrival, weight, *read_tensors(layout_, tensors));
  else if (owner != nullptr && settings_.spool.empty())
    commit(arrival, borrow(site, tensors, std::move(owner)));
  else
    commit(arrival, keep(site, tensors));
}

void MeanAggregator::add_chunks(const std::string& site, std::int64_t weight,
                                std::span<const ByteSpan> chunks, const UpdateForm& form,
                                Owner owner) {
  const FloatEnvironment exact;
  Arrival arrival(*this, site, weight);
  if (streaming())
    stream(arrival, weight, *read_chunks(layout_, check_update(layout_, chunks, form), form));
  else if (owner != nullptr && settings_.spool.empty())
    commit(arrival, borrow(site, chunks, form, std::move(owner)));
  else
    commit(arrival, keep(site, chunks, form));
}

void MeanAggregator::remove(const std::string& site) {
  if (streaming())
    throw ConfigError("a streaming mean cannot forget site '" + site + "': it keeps no updates",
                      "leave out `streaming` if updates must be removable");
  std::shared_ptr<const Committed> forgotten;  // destroyed after the mutex is free
  const std::lock_guard lock(mutex_);
  const auto found = updates_.find(site);
  if (found == updates_.end()) throw ConfigError("site '" + site + "' has no update to remove");
  forgotten = std::move(found->second);
  total_weight_ -= static_cast<std::uint64_t>(forgotten->weight);
  updates_.erase(found);
  weights_.erase(site);
}

std::vector<std::string> MeanAggregator::sites() const {
  const std::lock_guard lock(mutex_);
  return counted().sites;
}

std::uint64_t MeanAggregator::total_weight() const {
  const std::lock_guard lock(mutex_);
  return total_weight_;
}

// --- finishing ---------------------------------------------------------------------

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
      const auto mean =
          static_cast<std::int64_t>(round_integer_mean(sums[part.offset + i], total));
      std::memcpy(out + i * size, &mean, size);
    }
  });
}

int MeanAggregator::tile_exponent(const Set& set, std::size_t tile) const {
  int e = -2000;  // below every exponent: a tile of zeros
  for (const auto& update : set)
    if (const double largest = update->tile_max[tile]; largest > 0)
      e = std::max(e, exponent_above(largest) +
                          static_cast<int>(std::bit_width(
                              static_cast<std::uint64_t>(update->weight))));
  return scale_exponent(e, set.size());
}

// Where an update's values lie as floats they are read side by side with the others'; what
// else there is comes one by one. The scale rests on what was screened, which only holds if
// tensors that are not ours have not been changed since.
void MeanAggregator::sum_floats(const Set& set, std::size_t index, const Tile& tile,
                                int exponent, std::uint64_t* sums) const {
  std::vector<Stream> streams;
  for (const auto& update : set) {
    const double largest = update->tile_max[index];
    const double factor = factor_of(update->weight, exponent);
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
    if (!add_streams(streams.data() + begin, std::min(kStreams, streams.size() - begin),
                     tile.count, sums))
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
