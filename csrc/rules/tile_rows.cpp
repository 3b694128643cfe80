#include "rules/tile_rows.h"

#include <algorithm>
#include <map>
#include <utility>

#include "aggregate/rounding.h"
#include "aggregate/scale.h"
#include "base/error.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

constexpr DType value_dtype(float) { return DType::f32; }
constexpr DType value_dtype(double) { return DType::f64; }

std::uint64_t total_of(const std::vector<std::int64_t>& weights) {
  constexpr std::uint64_t kMost = std::uint64_t{1} << 31;
  std::uint64_t total = 0;
  for (const std::int64_t weight : weights) {
    if (weight < 0) throw ConfigError("weights of a row must not be negative");
    total += std::min<std::uint64_t>(static_cast<std::uint64_t>(weight), kMost);
    if (total >= kMost)
      throw ConfigError("the weights of a row must add up to less than 2**31",
                        "use fewer pre-steps, or smaller buckets");
  }
  if (total == 0) throw ConfigError("a row must have at least one update");
  return total;
}

}  // namespace

RowMix::RowMix(std::vector<std::vector<std::int64_t>> row_weights, std::size_t updates)
    : weights(std::move(row_weights)), needed(updates) {
  for (const auto& row : weights) {
    if (row.size() != updates) throw ConfigError("a row must have one weight per update");
    totals.push_back(total_of(row));
    for (std::size_t i = 0; i < updates; ++i)
      if (row[i] != 0) needed[i] = true;
  }
}

std::optional<std::size_t> only_update(const std::vector<std::int64_t>& weights) {
  const auto first = std::find_if(weights.begin(), weights.end(), [](auto w) { return w != 0; });
  if (std::any_of(first + 1, weights.end(), [](auto w) { return w != 0; })) return std::nullopt;
  return static_cast<std::size_t>(first - weights.begin());
}

// As scale_exponent() argues for weights, no row can overflow.
int row_exponent(const UpdateSnapshot& set, const RowMix& mix, std::size_t r, std::size_t index) {
  int e = -2000;
  for (std::size_t i = 0; i < set.updates.size(); ++i)
    if (const double largest = set.updates[i]->tiles[index].largest;
        mix.weights[r][i] != 0 && largest > 0)
      e = std::max(e, exponent_above(largest));
  return scale_exponent(e + exponent_above(mix.totals[r]), 1);
}

// --- group 1 ------------------------------------------------------------------------

template <class Value>
TileRows<Value>::TileRows(const Layout& layout, const UpdateSnapshot& set, const RowMix& mix)
    : layout_(layout), set_(set), mix_(mix), own_(set.updates.size()), mixed_(mix.rows()) {
  for (const auto& weights : mix.weights) single_.push_back(only_update(weights));
  if (std::find(single_.begin(), single_.end(), std::nullopt) != single_.end())
    fixed_.resize(set.updates.size());
}

// The tile's values where they lie, if they lie there one behind the other and stay what they are.
template <class Value>
const WireFloat* TileRows<Value>::in_place(const CommittedUpdate& update, const Tile& tile) const {
  const WireFloat* found = nullptr;
  if (update.may_have_changed()) return found;
  for_each_part(layout_, kFloatGroup, tile.first, tile.count, [&](const TensorPart& part) {
    if (part.count == tile.count) found = update.values->floats(tile, part);
  });
  return found;
}

template <class Value>
Row TileRows<Value>::load_update(std::size_t i, std::size_t index, const Tile& tile) {
  const CommittedUpdate& update = *set_.updates[i];
  if constexpr (sizeof(Value) == sizeof(float))
    if (const WireFloat* values = in_place(update, tile)) return reinterpret_cast<Row>(values);
  auto& room = own_[i];
  room.resize(kTile);
  update.values->values(tile, std::span(room.data(), tile.count));
  // The copy is what is looked at: the caller could change its own tensors afterwards.
  const auto within = [largest = update.tiles[index].largest](Value value) {
    return value <= largest && value >= -largest;
  };
  if (update.may_have_changed() && !std::all_of(room.begin(), room.begin() + tile.count, within))
    refuse_changed();
  return reinterpret_cast<Row>(room.data());
}

// Every update as multiples of a power of two.
template <class Value>
void TileRows<Value>::fix_updates(std::size_t index, const Tile& tile, int exponent) {
  const double factor = scale_factor(1, exponent);
  for (std::size_t i = 0; i < set_.updates.size(); ++i) {
    // An update too large for the exponent is in none of the rows that have it. Zeros fit every
    // one, also that of a tile of zeros, which is beyond all others.
    const double largest = set_.updates[i]->tiles[index].largest;
    const bool fits = largest == 0 || exponent_above(largest) + exponent <= 62;
    if (!mix_.needed[i] || !fits) continue;
    fixed_[i].assign(kTile, 0);
    const Row row = load_update(i, index, tile);
    if constexpr (sizeof(Value) == sizeof(float))
      kernels().codec.add_f32(reinterpret_cast<const WireFloat*>(row), tile.count, factor,
                              fixed_[i].data());
    else
      kernels().codec.add_f64(reinterpret_cast<const WireDouble*>(row), tile.count, factor,
                              fixed_[i].data());
  }
}

template <class Value>
Row TileRows<Value>::mix_row(std::size_t r, const Tile& tile, int exponent) {
  std::array<std::uint64_t, kTile> sums{};
  for (std::size_t i = 0; i < set_.updates.size(); ++i) {
    const auto weight = static_cast<std::uint64_t>(mix_.weights[r][i]);
    if (weight == 0) continue;
    const std::uint64_t* values = fixed_[i].data();
    if (weight == 1)
      for (std::size_t k = 0; k < tile.count; ++k) sums[k] += values[k];
    else
      for (std::size_t k = 0; k < tile.count; ++k) sums[k] += weight * values[k];
  }
  mixed_[r].resize(kTile);
  write_means({reinterpret_cast<const std::int64_t*>(sums.data()), tile.count},
              {exponent, mix_.totals[r]}, value_dtype(Value{}),
              reinterpret_cast<std::byte*>(mixed_[r].data()));
  return reinterpret_cast<Row>(mixed_[r].data());
}

// Rows with the same exponent share what was made for it.
template <class Value>
void TileRows<Value>::mix_rows(std::size_t index, const Tile& tile) {
  std::map<int, std::vector<std::size_t>> by_exponent;
  for (std::size_t r = 0; r < mix_.rows(); ++r)
    if (!single_[r]) by_exponent[row_exponent(set_, mix_, r, index)].push_back(r);
  for (const auto& [exponent, rows] : by_exponent) {
    fix_updates(index, tile, exponent);
    for (const std::size_t r : rows) rows_[r] = mix_row(r, tile, exponent);
  }
}

template <class Value>
std::span<const Row> TileRows<Value>::load(std::size_t index, const Tile& tile) {
  rows_.resize(mix_.rows());
  if (!fixed_.empty()) mix_rows(index, tile);
  for (std::size_t r = 0; r < mix_.rows(); ++r)
    if (single_[r]) rows_[r] = load_update(*single_[r], index, tile);
  return rows_;
}

template class TileRows<float>;
template class TileRows<double>;

// --- group 2 ------------------------------------------------------------------------

IntegerRows::IntegerRows(const UpdateSnapshot& set, const RowMix& mix)
    : set_(set), mix_(mix), updates_(set.updates.size()), rows_(mix.rows()) {}

const std::vector<std::vector<std::int64_t>>& IntegerRows::load(const Tile& tile) {
  for (std::size_t i = 0; i < updates_.size(); ++i) {
    if (!mix_.needed[i]) continue;
    updates_[i].resize(kTile);
    set_.updates[i]->values->read(tile, "", {updates_[i].data(), tile.count});
  }
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    std::vector<__int128> sums(tile.count);
    for (std::size_t i = 0; i < updates_.size(); ++i)
      if (const __int128 weight = mix_.weights[r][i]; weight != 0)
        for (std::size_t k = 0; k < tile.count; ++k) sums[k] += weight * updates_[i][k];
    rows_[r].resize(tile.count);
    for (std::size_t k = 0; k < tile.count; ++k)
      rows_[r][k] = static_cast<std::int64_t>(round_integer_mean(sums[k], mix_.totals[r]));
  }
  return rows_;
}

}  // namespace veilsum
