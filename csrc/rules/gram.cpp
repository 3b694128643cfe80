#include "rules/gram.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <mutex>

#include "aggregate/scale.h"
#include "aggregate/tiles.h"
#include "base/parallel.h"
#include "device/device_gram.h"
#include "device/gram_launchers.h"
#include "kernels/rule_dispatch.h"
#include "rules/tile_rows.h"

namespace veilsum {
namespace {

// Largest exponent of a value whose square is a double also when it is summed over 2^40 coordinates
// and multiplied by the weights of two mixed rows, 2^31 each.
constexpr int kMaxValueExponent = 448;

// The smallest e with |value| < 2^e for every value of the update.
int largest_exponent(const CommittedUpdate& update) {
  double largest = 0;
  for (const Screened& tile : update.tiles) largest = std::max(largest, tile.largest);
  return exponent_above(largest);
}

RowMix every_row(std::size_t updates) {
  std::vector<std::vector<std::int64_t>> rows(updates, std::vector<std::int64_t>(updates));
  for (std::size_t i = 0; i < updates; ++i) rows[i][i] = 1;
  return {std::move(rows), updates};
}

template <class Value>
void pack(Row row, std::size_t first, std::size_t count, double factor, double* packed) {
  const auto& kernels = rule_kernels().gram;
  if constexpr (sizeof(Value) == sizeof(float))
    kernels.pack_f32(reinterpret_cast<const WireFloat*>(row) + first, count, factor, packed);
  else
    kernels.pack_f64(reinterpret_cast<const WireDouble*>(row) + first, count, factor, packed);
}

// Values scaled to below 1 each, so that the sum over a model of 2^d coordinates is below 2^d, and
// its 126 - d bits behind the point are beyond what doubles tell apart.
class FixedGram {
 public:
  FixedGram(std::size_t rows, std::uint64_t coordinates)
      : scale_(126 - std::bit_width(coordinates)), rows_(rows), sums_(rows * (rows + 1) / 2) {}

  // From several threads.
  void add(const std::vector<double>& gram, std::size_t stride) {
    const std::lock_guard lock(mutex_);
    for (std::size_t i = 0, k = 0; i < rows_; ++i)
      for (std::size_t j = 0; j <= i; ++j, ++k)
        sums_[k] += static_cast<__int128>(std::ldexp(gram[i * stride + j], scale_));
  }

  // A triangle, row after row.
  void add(const double* products) {
    const std::lock_guard lock(mutex_);
    for (__int128& sum : sums_) sum += static_cast<__int128>(std::ldexp(*products++, scale_));
  }

  double at(std::size_t i, std::size_t j) const {
    const auto sum = sums_[std::max(i, j) * (std::max(i, j) + 1) / 2 + std::min(i, j)];
    return std::ldexp(static_cast<double>(sum), -scale_);
  }

 private:
  const int scale_;
  const std::size_t rows_;
  std::mutex mutex_;
  std::vector<__int128> sums_;
};

template <class Value>
void add_range(const Layout& layout, const UpdateSnapshot& set, const RowMix& mix,
               const std::vector<double>& factors, const Range& range, FixedGram& total) {
  const std::size_t rows = (mix.rows() + kGramRows - 1) / kGramRows * kGramRows;
  TileRows<Value> loaded(layout, set, mix);
  std::vector<double> packed(rows * kGramStride);
  std::vector<double> gram(rows * rows);
  const auto& kernels = rule_kernels().gram;
  // Products of floats are exact in double, those of doubles are not.
  const auto add = sizeof(Value) == sizeof(float) ? kernels.add_exact : kernels.add_rounded;
  for (std::size_t first = range.begin; first < range.end; first += kTile) {
    const Tile tile{first, std::min(kTile, range.end - first)};
    const auto pointers = loaded.load(first / kTile, tile);
    for (std::size_t k = 0; k < tile.count; k += kGramLeaf) {
      for (std::size_t i = 0; i < pointers.size(); ++i)
        pack<Value>(pointers[i], k, std::min(kGramLeaf, tile.count - k), factors[i],
                    packed.data() + i * kGramStride);
      add(packed.data(), rows, gram.data());
    }
  }
  total.add(gram, rows);
}

void add_ranges(const Layout& layout, const UpdateSnapshot& set, const std::vector<double>& factors,
                unsigned threads, FixedGram& total) {
  const RowMix mix = every_row(set.updates.size());
  const auto add_products = needs_double(layout) ? add_range<double> : add_range<float>;
  const std::size_t every = set.release_tiles() * kTile;
  parallel_for(layout.group_size(kFloatGroup), kGramRangeTiles * kTile, threads,
               [&](const Range& range) {
                 add_products(layout, set, mix, factors, range, total);
                 if (range.begin / every != range.end / every) set.release_pages();
               });
}

}  // namespace

Gram gram_of(const Layout& layout, const UpdateSnapshot& set, unsigned threads,
             const Device* device) {
  const std::size_t n = set.updates.size();
  std::vector<int> exponents;
  std::vector<double> factors;
  for (const auto& update : set.updates) {
    exponents.push_back(largest_exponent(*update));
    factors.push_back(std::ldexp(1.0, -exponents.back()));
  }
  const std::uint64_t size = layout.group_size(kFloatGroup);
  FixedGram total(n, std::max<std::uint64_t>(size, 1));
  if (device != nullptr)
    multiply_rows_on(*device, layout, set, factors, threads,
                     [&](const double* products) { total.add(products); });
  else
    add_ranges(layout, set, factors, threads, total);
  Gram gram{n, std::vector<double>(n * n)};
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j)
      gram.values[i * n + j] =
          std::ldexp(total.at(i, j), std::min(exponents[i], kMaxValueExponent) +
                                         std::min(exponents[j], kMaxValueExponent));
  return gram;
}

std::vector<double> shrinks_of(const UpdateSnapshot& set) {
  std::vector<double> shrinks;
  for (const auto& update : set.updates)
    shrinks.push_back(std::ldexp(1.0, std::min(0, kMaxValueExponent - largest_exponent(*update))));
  return shrinks;
}

std::vector<double> norms_of(const Layout& layout, const UpdateSnapshot& set, unsigned threads) {
  std::vector<double> norms;
  for (const auto& update : set.updates) {
    std::vector<Screened> tiles = update->tiles;
    if (!tiles.empty() && std::isnan(tiles.front().squares))
      tiles = screen_update(layout, *update->values, update->site, threads, Screening::squares);
    double squares = 0;
    for (const Screened& tile : tiles) squares += tile.squares;
    norms.push_back(std::sqrt(squares));
  }
  return norms;
}

}  // namespace veilsum
