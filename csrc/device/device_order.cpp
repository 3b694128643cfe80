#include "device/device_order.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/parallel.h"
#include "device/device_mean.h"
#include "device/order_launchers.h"
#include "device/places.h"
#include "device/row_pass.h"

namespace veilsum {
namespace {

ColumnRule column_rule(OrderKind kind) {
  return kind == OrderKind::median   ? ColumnRule::median
         : kind == OrderKind::middle ? ColumnRule::middle
                                     : ColumnRule::nearest;
}

std::vector<std::size_t> needed_updates(const RowMix& mix) {
  std::vector<std::size_t> needed;
  for (std::size_t i = 0; i < mix.needed.size(); ++i)
    if (mix.needed[i]) needed.push_back(i);
  return needed;
}

// What the rows of a rule are made of: updates as they are, and means of some.
struct OrderPass {
  OrderPass(const Device& device, const Layout& layout, const UpdateSnapshot& set,
            const RowMix& row_mix, const OrderRule& order_rule, unsigned threads)
      : rows(device, layout, set, threads, needed_updates(row_mix)),
        mix(row_mix),
        rule(order_rule) {
    number_of.resize(set.updates.size());
    for (std::size_t k = 0; k < rows.updates.size(); ++k) number_of[rows.updates[k]] = k;
    for (std::size_t r = 0; r < mix.rows(); ++r) {
      single.push_back(only_update(mix.weights[r]));
      if (single.back()) continue;
      mixed.push_back(r);
      for (const std::int64_t weight : mix.weights[r]) terms += weight != 0;
    }
  }

  const RowPass rows;
  const RowMix& mix;
  const OrderRule rule;
  std::vector<std::size_t> number_of;              // of updates in a window
  std::vector<std::optional<std::size_t>> single;  // per row: its only update
  std::vector<std::size_t> mixed;                  // rows that are means
  std::size_t terms = 0;                           // of those
};

// What one copy brings beside values: tables of rows, and what means are rounded to.
struct OrderPlaces {
  OrderPlaces(const OrderPass& pass, std::size_t tiles)
      : rows(places.add(pass.mix.rows() * sizeof(const unsigned char*))),
        mix_rows(places.add(pass.mixed.size() * sizeof(MixRow))),
        terms(places.add(pass.terms * sizeof(MixTerm))),
        exponents(places.add(pass.mixed.size() * tiles * sizeof(int))),
        formats(places.add(tiles * kTile / kFormatBlock * sizeof(MeanFormat))) {}

  Places places;
  std::size_t rows, mix_rows, terms, exponents, formats;
};

bool needs_scratch(const OrderPass& pass, const Device& device) {
  if (pass.rule.kind == OrderKind::median && pass.mix.rows() <= kRegisterRows) return false;
  return sorted_piece_bytes(pass.mix.rows(), pass.rows.wide) + kOrderSharedBytes >
         device.shared_bytes();
}

std::size_t scratch_bytes(const OrderPass& pass, const Device& device, std::size_t tiles) {
  if (!needs_scratch(pass, device)) return 0;
  return sorted_piece_bytes(pass.mix.rows(), pass.rows.wide) *
         std::min(kScratchBlocks, tiles * kTile / kOrderPiece);
}

// Host and device memory for one window, and the stream that it is worked on.
class OrderSlot {
 public:
  OrderSlot(const OrderPass& pass, const Device& device, std::size_t tiles, const MeanSink& sink)
      : pass_(pass),
        sink_(sink),
        stream_(device),
        rows_(pass.rows, stream_, tiles),
        input_(device, OrderPlaces(pass, tiles).places.bytes()),
        device_input_(stream_, OrderPlaces(pass, tiles).places.bytes()),
        mixed_(stream_, pass.mixed.size() * tiles * pass.rows.tile_bytes()),
        scratch_(stream_, scratch_bytes(pass, device, tiles)),
        device_results_(stream_, tiles * pass.rows.tile_bytes()),
        results_(device, tiles * pass.rows.tile_bytes()) {}

  // An error may have come between a copy and the wait for it.
  ~OrderSlot() { stream_.drain(); }
  OrderSlot(const OrderSlot&) = delete;
  OrderSlot& operator=(const OrderSlot&) = delete;

  // Starts a window.
  void begin(const Window& window) {
    const OrderPlaces at(pass_, window.tiles);
    rows_.bring(window);
    pass_.rows.write_formats(window, input_.as<MeanFormat>(at.formats));
    write_tables(window, at);
    window_ = window;
    stream_.to_device(device_input_.as<void>(), input_.as<void>(), at.places.bytes());
    mix_rows(at);
    order_columns(at);
    stream_.to_host(results_.as<void>(), device_results_.as<void>(),
                    window.tiles * pass_.rows.tile_bytes());
  }

  // Waits for it and hands on the results. Does nothing if no window was begun.
  void finish() {
    if (!window_) return;
    stream_.synchronize();
    rows_.require_unchanged();
    parallel_for(window_->tiles, 1, pass_.rows.threads, [&](const Range& range) {
      const Tile tile = pass_.rows.tile(window_->first_tile + range.index);
      if (pass_.rows.wide)
        sink_.means(tile, results_.as<double>() + range.index * kTile);
      else
        sink_.means(tile, results_.as<float>() + range.index * kTile);
    });
    window_.reset();
  }

 private:
  const unsigned char* update_values(std::size_t update, const Window& window) const {
    return rows_.row(pass_.number_of[update], window.tiles);
  }

  void write_tables(const Window& window, const OrderPlaces& at) {
    auto* const rows = input_.as<const unsigned char*>(at.rows);
    auto* const exponents = input_.as<int>(at.exponents);
    std::uint32_t term = 0;
    for (std::size_t r = 0, m = 0; r < pass_.mix.rows(); ++r) {
      if (pass_.single[r]) {
        rows[r] = update_values(*pass_.single[r], window);
        continue;
      }
      unsigned char* const values =
          mixed_.as<unsigned char>(m * window.tiles * pass_.rows.tile_bytes());
      rows[r] = values;
      const std::uint32_t terms = write_terms(r, term, window, at);
      input_.as<MixRow>(at.mix_rows)[m] = {values, term, terms, pass_.mix.totals[r],
                                           1.0 / static_cast<double>(pass_.mix.totals[r])};
      for (std::size_t t = 0; t < window.tiles; ++t)
        exponents[t * pass_.mixed.size() + m] =
            row_exponent(pass_.rows.set, pass_.mix, r, window.first_tile + t);
      term += terms;
      ++m;
    }
  }

  // Returns how many there are.
  std::uint32_t write_terms(std::size_t r, std::uint32_t first, const Window& window,
                            const OrderPlaces& at) {
    std::uint32_t count = 0;
    const auto& weights = pass_.mix.weights[r];
    for (std::size_t i = 0; i < weights.size(); ++i)
      if (weights[i] != 0)
        input_.as<MixTerm>(at.terms)[first + count++] = {update_values(i, window),
                                                         static_cast<std::uint64_t>(weights[i])};
    return count;
  }

  void mix_rows(const OrderPlaces& at) {
    if (pass_.mixed.empty()) return;
    const RowMeans means = {
        .wide = pass_.rows.wide,
        .tiles = window_->tiles,
        .rows = pass_.mixed.size(),
        .row = device_input_.as<MixRow>(at.mix_rows),
        .term = device_input_.as<MixTerm>(at.terms),
        .exponent = device_input_.as<int>(at.exponents),
    };
    check(kernels().mean_rows(stream_.launch(), means), "launching means of rows", mixed_.bytes());
  }

  void order_columns(const OrderPlaces& at) {
    const ColumnOrder order = {
        .rule = column_rule(pass_.rule.kind),
        .wide = pass_.rows.wide,
        .tiles = window_->tiles,
        .rows = pass_.mix.rows(),
        .row = device_input_.as<const unsigned char*>(at.rows),
        .first = pass_.rule.first,
        .kept = pass_.rule.kept,
        .reciprocal = 1.0 / static_cast<double>(pass_.rule.kept),
        .format = device_input_.as<MeanFormat>(at.formats),
        .scratch = scratch_.as<void>(),
        .results = device_results_.as<void>(),
    };
    check(kernels().order_columns(stream_.launch(), order), "launching the order of a window",
          window_->tiles * pass_.rows.tile_memory());
  }

  const OrderLaunchers& kernels() const { return *stream_.device().api().order; }
  void check(int status, const char* call, std::size_t bytes) const {
    stream_.device().check(status, call, bytes);
  }

  const OrderPass& pass_;
  const MeanSink& sink_;
  const DeviceStream stream_;
  RowWindow rows_;
  const PinnedBuffer input_;
  const DeviceBuffer device_input_;
  const DeviceBuffer mixed_;
  const DeviceBuffer scratch_;
  const DeviceBuffer device_results_;
  const PinnedBuffer results_;
  std::optional<Window> window_;
};

// With many rows fewer tiles, so that a window is as large as others.
std::size_t window_tiles(const OrderPass& pass) {
  const std::size_t mixed = pass.mixed.size() * pass.rows.tile_bytes();
  return std::min(pass.rows.tiles, most_window_tiles(pass.rows.tile_memory() + mixed));
}

}  // namespace

void order_floats_on(const Device& device, const Layout& layout, const UpdateSnapshot& set,
                     const RowMix& mix, const OrderRule& rule, unsigned threads,
                     const MeanSink& sink) {
  const OrderPass pass(device, layout, set, mix, rule, threads);
  if (pass.rows.tiles == 0) return;
  const std::size_t tiles = window_tiles(pass);
  const OnDevice on(device);
  walk_tiles<OrderSlot>(set, pass.rows.tiles, tiles, [&](std::optional<OrderSlot>& slot) {
    slot.emplace(pass, device, tiles, sink);
  });
}

}  // namespace veilsum
