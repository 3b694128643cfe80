#include "aggregate/mean.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <numeric>
#include <utility>

#include "aggregate/scale.h"
#include "base/error.h"
#include "base/float_environment.h"
#include "update/encode.h"

namespace veilsum {
namespace {

int streaming_exponent(const MeanSettings& settings) {
  const double max_abs = settings.streaming_max_abs;
  if (max_abs == 0) return 0;
  if (!(max_abs >= 0x1p-900 && std::isfinite(max_abs)))
    throw ConfigError("streaming max_abs must be positive, finite and at least 2**-900, got " +
                      std::to_string(max_abs));
  const std::uint64_t weight = settings.streaming_max_total_weight;
  if (weight < 1 || weight > kMaxTotalWeight)
    throw ConfigError("streaming max_total_weight must be 1 to 2**53-1, got " +
                      std::to_string(weight));
  return scale_exponent(exponent_above(max_abs) + exponent_above(weight), 1);
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
    if (counted_) return;
    const std::lock_guard lock(owner_.mutex_);
    leave();
  }
  Arrival(const Arrival&) = delete;
  Arrival& operator=(const Arrival&) = delete;

  const std::string& site() const { return site_; }
  std::int64_t weight() const { return weight_; }
  // With the mutex held. Allocates first: what follows cannot fail. The weight goes from one
  // account to the other in one step, so that no other arrival sees it in both.
  void count() {
    owner_.weights_.emplace(site_, weight_);
    owner_.total_weight_ += static_cast<std::uint64_t>(weight_);
    leave();
    counted_ = true;
  }

 private:
  void leave() {
    owner_.arriving_.erase(site_);
    owner_.arriving_weight_ -= static_cast<std::uint64_t>(weight_);
  }

  void require_room() const {
    const std::uint64_t total =
        owner_.total_weight_ + owner_.arriving_weight_ + static_cast<std::uint64_t>(weight_);
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
  bool counted_ = false;
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

MeanAggregator::Committed MeanAggregator::keep(const std::string& site, TensorData tensors) const {
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
  StoredBytes kept(settings_.spool, site,
                   std::accumulate(sizes.begin(), sizes.end(), std::size_t{0}));
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
  return {
      site, 0, nullptr, {}, std::move(kept), std::move(update.tile_max), std::move(update.values)};
}

MeanAggregator::Committed MeanAggregator::borrow(const std::string& site, TensorData tensors,
                                                 Owner owner) const {
  std::vector<const std::byte*> places(tensors.begin(), tensors.end());
  auto values = read_tensors(layout_, places);  // moving the vector does not move its elements
  auto tile_max = screen(*values, site);
  return {site,
          0,
          std::move(owner),
          std::move(places),
          StoredBytes("", site, 0),
          std::move(tile_max),
          std::move(values)};
}

MeanAggregator::Committed MeanAggregator::borrow(const std::string& site,
                                                 std::span<const ByteSpan> chunks,
                                                 const UpdateForm& form, Owner owner) const {
  auto values = read_chunks(layout_, check_update(layout_, chunks, form), form);
  auto tile_max = screen(*values, site);
  return {site,
          0,
          std::move(owner),
          {},
          StoredBytes("", site, 0),
          std::move(tile_max),
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
    return values.add(tile, scale_factor(weight, streaming_exponent_),
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

void MeanAggregator::add_tensors(const std::string& site, std::int64_t weight, TensorData tensors,
                                 Owner owner) {
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

}  // namespace veilsum
