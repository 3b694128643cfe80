#include "device/device_gram.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "device/device_mean.h"
#include "device/gram_launchers.h"
#include "device/row_pass.h"

namespace veilsum {
namespace {

std::vector<std::size_t> all_updates(const UpdateSnapshot& set) {
  std::vector<std::size_t> numbers(set.updates.size());
  std::iota(numbers.begin(), numbers.end(), std::size_t{0});
  return numbers;
}

struct GramPass {
  const RowPass rows;
  const std::span<const double> factors;

  std::size_t count() const { return rows.updates.size(); }
  std::size_t pairs() const { return count() * (count() + 1) / 2; }
};

std::size_t ranges_of(std::size_t tiles) { return (tiles + kGramRangeTiles - 1) / kGramRangeTiles; }

// How ranges come to a device: several in one copy, or, where there are many rows, one in several.
struct GramSteps {
  explicit GramSteps(const GramPass& pass) {
    const std::size_t most = most_window_tiles(pass.rows.tile_memory());
    tiles = std::max(kGramRangeTiles, most / kGramRangeTiles * kGramRangeTiles);
    tiles = std::min(tiles, ranges_of(pass.rows.tiles) * kGramRangeTiles);
    copied = std::min(most, tiles);
  }
  std::size_t tiles;   // of a slot's window: whole ranges
  std::size_t copied;  // of one copy, at most
};

// Host and device memory for some ranges, and the stream that they are worked on.
class GramSlot {
 public:
  GramSlot(const GramPass& pass, const Device& device, const GramSteps& steps,
           const RangeProducts& take)
      : pass_(pass),
        take_(take),
        copied_(steps.copied),
        stream_(device),
        rows_(pass.rows, stream_, copied_),
        input_(device, pass.count() * sizeof(GramRow)),
        device_input_(stream_, pass.count() * sizeof(GramRow)),
        device_products_(stream_, ranges_of(steps.tiles) * pass.pairs() * sizeof(double)),
        products_(device, ranges_of(steps.tiles) * pass.pairs() * sizeof(double)) {}

  // An error may have come between a copy and the wait for it.
  ~GramSlot() { stream_.drain(); }
  GramSlot(const GramSlot&) = delete;
  GramSlot& operator=(const GramSlot&) = delete;

  // Starts a window.
  void begin(const Window& window) {
    ranges_ = ranges_of(window.tiles);
    for (std::size_t done = 0; done < window.tiles; done += copied_) {
      // The copy before must have left the host memory that this one is written to.
      if (done != 0) stream_.synchronize();
      add({window.first_tile + done, std::min(copied_, window.tiles - done)}, done == 0);
    }
    stream_.to_host(products_.as<void>(), device_products_.as<void>(),
                    ranges_ * pass_.pairs() * sizeof(double));
  }

  // Waits for it and hands on the products. Does nothing if no window was begun.
  void finish() {
    if (ranges_ == 0) return;
    stream_.synchronize();
    rows_.require_unchanged();
    for (std::size_t range = 0; range < ranges_; ++range)
      take_(products_.as<double>() + range * pass_.pairs());
    ranges_ = 0;
  }

 private:
  void add(const Window& part, bool first) {
    rows_.bring(part);
    for (std::size_t i = 0; i < pass_.count(); ++i)
      input_.as<GramRow>()[i] = {rows_.row(i, part.tiles), pass_.factors[i]};
    stream_.to_device(device_input_.as<void>(), input_.as<void>(), device_input_.bytes());
    const WindowGram window = {
        .wide = pass_.rows.wide,
        .tiles = part.tiles,
        .rows = pass_.count(),
        .row = device_input_.as<GramRow>(),
        .first = first,
        .gram = device_products_.as<double>(),
    };
    stream_.device().check(stream_.device().api().gram->add_window(stream_.launch(), window),
                           "launching inner products", part.tiles * pass_.rows.tile_memory());
  }

  const GramPass& pass_;
  const RangeProducts& take_;
  const std::size_t copied_;
  const DeviceStream stream_;
  RowWindow rows_;
  const PinnedBuffer input_;
  const DeviceBuffer device_input_;
  const DeviceBuffer device_products_;
  const PinnedBuffer products_;
  std::size_t ranges_ = 0;  // under way
};

}  // namespace

void multiply_rows_on(const Device& device, const Layout& layout, const UpdateSnapshot& set,
                      std::span<const double> factors, unsigned threads,
                      const RangeProducts& take) {
  const GramPass pass = {RowPass(device, layout, set, threads, all_updates(set)), factors};
  if (pass.rows.tiles == 0 || pass.count() == 0) return;
  const GramSteps steps(pass);
  const OnDevice on(device);
  walk_tiles<GramSlot>(set, pass.rows.tiles, steps.tiles, [&](std::optional<GramSlot>& slot) {
    slot.emplace(pass, device, steps, take);
  });
}

}  // namespace veilsum
