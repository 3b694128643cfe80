#include "rules/order_pass.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "aggregate/rounding.h"
#include "aggregate/scale.h"
#include "aggregate/tiles.h"
#include "aggregate/write_means.h"
#include "base/error.h"
#include "base/parallel.h"
#include "device/device_order.h"
#include "kernels/dispatch.h"
#include "kernels/rule_dispatch.h"

namespace veilsum {
namespace {

// Tiles that one thread works through with the same memory.
constexpr std::size_t kRangeTiles = 16;

template <class Body>
void for_each_range(const Layout& layout, int group, unsigned threads, const Body& body) {
  parallel_for(layout.group_size(group), kRangeTiles * kTile, threads, body);
}

template <class Body>
void for_tiles_of(const Range& range, const Body& body) {
  for (std::size_t first = range.begin; first < range.end; first += kTile)
    body(first / kTile, Tile{first, std::min(kTile, range.end - first)});
}

const ColumnKernels<float>& columns(float) { return rule_kernels().f32; }
const ColumnKernels<double>& columns(double) { return rule_kernels().f64; }

// One thread's work on group 1.
template <class Value>
class FloatWorker {
 public:
  FloatWorker(const Layout& layout, const UpdateSnapshot& set, const RowMix& mix,
              const OrderRule& rule)
      : layout_(layout),
        rule_(rule),
        rows_(layout, set, mix),
        scratch_(order_scratch_bytes(mix.rows(), sizeof(Value)) / sizeof(CacheLine) + 1) {}

  void work(std::size_t index, const Tile& tile, MutableTensorData tensors) {
    const std::span<const Row> rows = rows_.load(index, tile);
    if (rule_.kind == OrderKind::median) {
      std::array<Value, kTile> medians;
      const std::size_t piece = median_piece(rows.size(), sizeof(Value));
      over_pieces(rows, tile.count, piece, [&](const Row* from, const Tile& part) {
        columns(Value{}).median(from, rows.size(), part.count, scratch_.data(),
                                medians.data() + part.first);
      });
      return write_values(layout_, tile, medians.data(), tensors);
    }
    const KeptRanks kept{rows.size(), rule_.first, rule_.kept};
    const auto sum = rule_.kind == OrderKind::middle ? columns(Value{}).sum_middle
                                                     : columns(Value{}).sum_nearest;
    over_pieces(rows, tile.count, kOrderPiece, [&](const Row* from, const Tile& part) {
      std::array<std::uint64_t, kOrderPiece> sums;
      const int exponent = sum(from, kept, part.count, scratch_.data(), sums.data());
      write_float_means(layout_, {tile.first + part.first, part.count}, sums.data(),
                        {exponent, rule_.kept}, tensors);
    });
  }

 private:
  // Calls use(rows from there on, part of the tile) for each piece of it.
  template <class Use>
  void over_pieces(std::span<const Row> rows, std::size_t count, std::size_t piece,
                   const Use& use) {
    from_.resize(rows.size());
    for (std::size_t first = 0; first < count; first += piece) {
      for (std::size_t r = 0; r < rows.size(); ++r) from_[r] = rows[r] + first * sizeof(Value);
      use(from_.data(), Tile{first, std::min(piece, count - first)});
    }
  }

  const Layout& layout_;
  const OrderRule rule_;
  TileRows<Value> rows_;
  std::vector<CacheLine> scratch_;
  std::vector<Row> from_;
};

// Twice the distance to the median, exactly.
__int128 twice_from(__int128 twice_median, std::int64_t value) {
  const __int128 difference = 2 * static_cast<__int128>(value) - twice_median;
  return difference < 0 ? -difference : difference;
}

// The sum of what the rule keeps of a sorted column, and how many values that is.
std::pair<__int128, std::uint64_t> kept_of(const std::vector<std::int64_t>& column,
                                           const OrderRule& rule) {
  const std::size_t n = column.size();
  const __int128 twice_median =
      static_cast<__int128>(column[(n - 1) / 2]) + static_cast<__int128>(column[n / 2]);
  if (rule.kind == OrderKind::median) return {twice_median, 2};
  std::size_t first = rule.first;
  if (rule.kind == OrderKind::nearest)
    for (first = 0; first + rule.kept < n; ++first)
      if (twice_from(twice_median, column[first]) <=
          twice_from(twice_median, column[first + rule.kept]))
        break;
  __int128 sum = 0;
  for (std::size_t r = first; r < first + rule.kept; ++r) sum += column[r];
  return {sum, rule.kept};
}

void order_integers(const Layout& layout, const UpdateSnapshot& set, const RowMix& mix,
                    const OrderRule& rule, unsigned threads, MutableTensorData tensors) {
  for_each_range(layout, kIntegerGroup, threads, [&](const Range& range) {
    IntegerRows rows(set, mix);
    std::vector<std::int64_t> column(mix.rows());
    std::vector<__int128> sums(kTile);
    for_tiles_of(range, [&](std::size_t, const Tile& tile) {
      const auto& values = rows.load(tile);
      std::uint64_t kept = 1;
      for (std::size_t k = 0; k < tile.count; ++k) {
        for (std::size_t r = 0; r < column.size(); ++r) column[r] = values[r][k];
        std::sort(column.begin(), column.end());
        std::tie(sums[k], kept) = kept_of(column, rule);
      }
      write_integer_means(layout, tile, sums.data(), kept, tensors);
    });
  });
}

template <class Value>
void order_floats(const Layout& layout, const UpdateSnapshot& set, const RowMix& mix,
                  const OrderRule& rule, unsigned threads, MutableTensorData tensors) {
  const std::size_t release_tiles = set.release_tiles();
  for_each_range(layout, kFloatGroup, threads, [&](const Range& range) {
    FloatWorker<Value> worker(layout, set, mix, rule);
    for_tiles_of(range, [&](std::size_t index, const Tile& tile) {
      worker.work(index, tile, tensors);
      if ((index + 1) % release_tiles == 0) set.release_pages();
    });
  });
}

template <class Value>
void copy_floats(const Layout& layout, const CommittedUpdate& update, unsigned threads,
                 MutableTensorData tensors) {
  for_each_tile(layout, kFloatGroup, threads, [&](std::size_t index, const Tile& tile) {
    std::array<Value, kTile> values;
    update.values->values(tile, std::span(values.data(), tile.count));
    const double largest = update.tiles[index].largest;
    for (std::size_t k = 0; k < tile.count; ++k) {
      if (update.may_have_changed() && !(values[k] <= largest && values[k] >= -largest))
        refuse_changed();
      values[k] += 0;  // a zero has no sign
    }
    write_values(layout, tile, values.data(), tensors);
  });
}

}  // namespace

void take_order(const Layout& layout, const UpdateSnapshot& set, const RowMix& mix,
                const OrderRule& rule, unsigned threads, const Device* device,
                MutableTensorData tensors) {
  if (mix.rows() == 0) throw ConfigError("there is nothing to order", "add updates first");
  if (rule.kind != OrderKind::median &&
      (rule.kept == 0 || rule.kept > mix.rows() || rule.first > mix.rows() - rule.kept))
    throw ConfigError("ranks " + std::to_string(rule.first) + " to " +
                      std::to_string(rule.first + rule.kept) + " of " + std::to_string(mix.rows()) +
                      " values cannot be kept");
  if (device != nullptr)
    order_floats_on(*device, layout, set, mix, rule, threads, MeanWriter(layout, tensors));
  else if (needs_double(layout))
    order_floats<double>(layout, set, mix, rule, threads, tensors);
  else
    order_floats<float>(layout, set, mix, rule, threads, tensors);
  order_integers(layout, set, mix, rule, threads, tensors);
}

void take_update(const Layout& layout, const UpdateSnapshot& set, std::size_t index,
                 unsigned threads, MutableTensorData tensors) {
  if (index >= set.updates.size()) throw ConfigError("there is no such update");
  const CommittedUpdate& update = *set.updates[index];
  if (needs_double(layout))
    copy_floats<double>(layout, update, threads, tensors);
  else
    copy_floats<float>(layout, update, threads, tensors);
  for_each_tile(layout, kIntegerGroup, threads, [&](std::size_t, const Tile& tile) {
    std::array<std::int64_t, kTile> room;
    update.values->read(tile, "", {room.data(), tile.count});
    const std::vector<__int128> sums(room.begin(), room.begin() + tile.count);
    write_integer_means(layout, tile, sums.data(), 1, tensors);
  });
}

}  // namespace veilsum
