#include "device/device_mean.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "aggregate/mean_pass.h"
#include "aggregate/tiles.h"
#include "aggregate/write_means.h"
#include "base/parallel.h"
#include "device/device_step.h"
#include "device/packed_tiles.h"
#include "device/places.h"
#include "device/resident.h"
#include "device/window_form.h"

namespace veilsum {
namespace {

PassMemory pass_memory;

constexpr std::size_t kBlock = 64;
constexpr std::size_t kTileBlocks = kTile / kBlock;

// A batch's part of a window: what its updates count, their codes and scales. Of resident updates
// only those tiles have a place whose values have to be gathered first.
struct BatchPlaces {
  BatchPlaces(const WindowBatch& batch, std::size_t tiles)
      : gathered(places.add(
            batch.form.resident ? batch.updates.size() * tiles * sizeof(GatheredTile) : 0)),
        terms(places.add(batch.updates.size() * tiles * sizeof(WindowTerm))),
        copied_without_codes(places.bytes()),
        packed(batch.form, batch.updates.size(), tiles, places),
        codes(places.add(
            batch.form.packed() ? 0 : batch.updates.size() * tiles * batch.form.code_bytes())),
        scales(places.add(
            batch.form.packed() ? 0 : batch.updates.size() * tiles * batch.form.scale_bytes())) {}

  // What the host writes and copies of updates that are not packed: of resident ones no values.
  std::size_t copied(const WindowForm& form) const {
    return form.resident ? copied_without_codes : places.bytes();
  }

  Places places;
  std::size_t gathered, terms, copied_without_codes;
  PackedPlaces packed;
  std::size_t codes, scales;
};

// What the means of a window need besides the sums.
struct MeanPlaces {
  explicit MeanPlaces(std::size_t tiles)
      : divisors(places.add(tiles * sizeof(TileDivisor))),
        formats(places.add(tiles * kTileBlocks * sizeof(MeanFormat))) {}

  Places places;
  std::size_t divisors, formats;
};

// What comes back: whether a value was beyond its limit, and the means unless they stay.
struct ResultPlaces {
  ResultPlaces(std::size_t tiles, bool wide)
      : beyond(places.add(4)), means(places.add(tiles * kTile * (wide ? 8 : 4))) {}

  Places places;
  std::size_t beyond, means;
};

// What becomes of means: one of the two, or none are taken.
struct MeanEnd {
  const MeanSink* sink = nullptr;    // takes them on the host
  const ServerStep* step = nullptr;  // is made by them on the device

  bool wanted() const { return sink != nullptr || step != nullptr; }
};

// One pass over a set; or over sums that are kept, with an update that they get or without.
struct Pass {
  const Layout& layout;
  const UpdateSnapshot& set;
  const unsigned threads;
  const bool wide;
  const std::vector<WindowBatch> batches;
  const MeanEnd end;
  const std::optional<KeptSums> kept = {};

  int exponent(std::size_t index) const {
    return kept ? kept->exponent : tile_exponent(set, index);
  }
  Tile tile(std::size_t index) const { return tile_at(layout, kFloatGroup, index); }
};

// Nobody changes codes that were checked; values are what they were only if nobody wrote to them.
std::uint64_t limit_pattern(const WindowForm& form, double largest) {
  if (form.summed() == WindowCodes::f64) return std::bit_cast<std::uint64_t>(largest);
  if (form.summed() != WindowCodes::f32 && !form.resident)
    return std::bit_cast<std::uint32_t>(std::numeric_limits<float>::infinity());
  // f32 tiles of a set with wider ones: what is beyond every float is not within the limit.
  return std::bit_cast<std::uint32_t>(
      static_cast<float>(std::min(largest, double{std::numeric_limits<float>::max()})));
}

// Without its places.
WindowTerm window_term(const Pass& pass, const WindowForm& form, std::size_t update,
                       std::size_t tile, int exponent) {
  const double largest = pass.set.updates[update]->tiles[tile].largest;
  return {.codes = nullptr,
          .scales = nullptr,
          .factor = largest == 0 ? 0 : pass.set.shares[update].factor(exponent),
          .limit = limit_pattern(form, largest)};
}

// Host and device memory for one window, and the stream that it is worked on.
class Slot {
 public:
  Slot(const Pass& pass, const Device& device, std::size_t tiles)
      : pass_(pass),
        stream_(device),
        input_bytes_(most_input(pass, tiles)),
        mean_places_(tiles),
        result_places_(pass.end.wanted() ? tiles : 0, pass.wide),
        input_(device, input_bytes_ + mean_places_.places.bytes()),
        device_input_(stream_, input_bytes_ + mean_places_.places.bytes()),
        sums_(stream_, pass.kept ? 0 : tiles * kTile * sizeof(std::uint64_t)),
        unpacked_(stream_, most_unpacked(pass, tiles)),
        device_result_(stream_, result_places_.places.bytes()),
        result_(device, copied_back()) {
    if (pass.end.step != nullptr) step_.emplace(stream_, *pass.end.step, tiles, pass.threads);
  }

  // An error may have come between a copy and the wait for it.
  ~Slot() { stream_.drain(); }
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;

  // Starts a window.
  void begin(const Window& window) {
    window_ = window;
    stream_.clear(device_result_.as<void>(result_places_.beyond), sizeof(std::uint32_t));
    if (pass_.end.wanted()) write_mean_input();
    if (pass_.batches.empty()) take_means();
    for (std::size_t number = 0; number < pass_.batches.size(); ++number) {
      // The copy of the batch before must have left the host memory that this one is written to.
      if (number != 0) stream_.synchronize();
      sum_batch(number);
    }
    if (step_) step_->begin(window, device_result_.as<void>(result_places_.means), pass_.wide);
    stream_.to_host(result_.as<void>(), device_result_.as<void>(), copied_back());
  }

  // Waits for it and hands on what it gave. Does nothing if no window was begun.
  void finish() {
    if (!window_) return;
    stream_.synchronize();
    if (*result_.as<std::uint32_t>(result_places_.beyond) != 0) refuse_changed();
    if (step_) step_->finish();
    if (pass_.end.sink != nullptr) hand_on_means();
    window_.reset();
  }

 private:
  // Means come back to the sink alone.
  std::size_t copied_back() const {
    return pass_.end.sink != nullptr ? result_places_.places.bytes() : sizeof(std::uint32_t);
  }

  void hand_on_means() const {
    parallel_for(window_->tiles, 1, pass_.threads, [&](const Range& range) {
      const Tile tile = pass_.tile(window_->first_tile + range.index);
      if (pass_.wide)
        pass_.end.sink->means(tile, result_.as<double>(result_places_.means) + range.index * kTile);
      else
        pass_.end.sink->means(tile, result_.as<float>(result_places_.means) + range.index * kTile);
    });
  }

  static std::size_t most_input(const Pass& pass, std::size_t tiles) {
    std::size_t most = 0;
    for (const WindowBatch& batch : pass.batches)
      most = std::max(most, BatchPlaces(batch, tiles).places.bytes());
    return most;
  }

  // Values of the batch that is summed, if it was packed. Never nothing: that is no allocation.
  static std::size_t most_unpacked(const Pass& pass, std::size_t tiles) {
    std::size_t most = 256;
    for (const WindowBatch& batch : pass.batches)
      most = std::max(most, batch.updates.size() * tiles * batch.form.value_bytes());
    return most;
  }

  // Behind the batches' memory, because every batch uses that anew.
  void write_mean_input() {
    auto* const divisors = input_.as<TileDivisor>(input_bytes_ + mean_places_.divisors);
    auto* const formats = input_.as<MeanFormat>(input_bytes_ + mean_places_.formats);
    std::fill_n(formats, window_->tiles * kTileBlocks, MeanFormat::f32);
    for (std::size_t t = 0; t < window_->tiles; ++t) {
      const std::size_t index = window_->first_tile + t;
      const int exponent = pass_.exponent(index);
      divisors[t] = {std::ldexp(1.0 / static_cast<double>(pass_.set.total_weight), -exponent),
                     exponent};
      const Tile tile = pass_.tile(index);
      for_each_part(pass_.layout, kFloatGroup, tile.first, tile.count, [&](const TensorPart& part) {
        const DType dtype = pass_.layout.tensors()[part.tensor].dtype;
        std::fill_n(formats + t * kTileBlocks + part.offset / kBlock,
                    (part.count + kBlock - 1) / kBlock, mean_format(dtype));
      });
    }
    stream_.to_device(device_input_.as<void>(input_bytes_), input_.as<void>(input_bytes_),
                      mean_places_.places.bytes());
  }

  // One update's tile: its place on the device, where host memory that is copied gets its values.
  void place_tile(const WindowBatch& batch, const BatchPlaces& at, std::size_t place,
                  std::size_t update, std::size_t index, WindowTerm& term) {
    if (batch.form.packed()) {
      term.codes = unpacked_.as<unsigned char>(place * batch.form.value_bytes());
      return;
    }
    const std::size_t codes = at.codes + place * batch.form.code_bytes();
    const std::size_t scales = at.scales + place * batch.form.scale_bytes();
    term.codes = device_input_.as<unsigned char>(codes);
    term.scales = device_input_.as<unsigned char>(scales);
    const CommittedUpdate& own = *pass_.set.updates[update];
    if (!batch.form.resident)
      write_window_tile(batch.form, own, pass_.tile(index), input_.as<std::byte>(codes),
                        input_.as<std::byte>(scales));
    else if (const unsigned char* there = own.values->resident()->in_place(pass_.tile(index)))
      term.codes = there;
  }

  void write_terms(const WindowBatch& batch, const BatchPlaces& at) {
    const std::size_t count = batch.updates.size();
    auto* const terms = input_.as<WindowTerm>(at.terms);
    parallel_for(window_->tiles, 1, pass_.threads, [&](const Range& range) {
      const std::size_t t = range.index;
      const std::size_t index = window_->first_tile + t;
      const int exponent = pass_.exponent(index);
      for (std::size_t k = 0; k < count; ++k) {
        WindowTerm& term = terms[t * count + k];
        term = window_term(pass_, batch.form, batch.updates[k], index, exponent);
        place_tile(batch, at, k * window_->tiles + t, batch.updates[k], index, term);
      }
    });
  }

  // Tiles of resident updates whose values do not lie together as kernels take them.
  std::vector<std::size_t> write_gathered(const WindowBatch& batch, const BatchPlaces& at) {
    const std::size_t count = batch.updates.size();
    const auto* const terms = input_.as<WindowTerm>(at.terms);
    auto* gathered = input_.as<GatheredTile>(at.gathered);
    std::vector<std::size_t> ends;  // of each update's tiles in the list
    std::size_t end = 0;
    for (std::size_t k = 0; k < count; ++k) {
      for (std::size_t t = 0; t < window_->tiles; ++t) {
        auto* const place = device_input_.as<unsigned char>(at.codes + (k * window_->tiles + t) *
                                                                           batch.form.code_bytes());
        if (terms[t * count + k].codes == place)
          gathered[end++] = {window_->first_tile + t, place, 0};
      }
      ends.push_back(end);
    }
    return ends;
  }

  void gather_batch(const WindowBatch& batch, const BatchPlaces& at,
                    const std::vector<std::size_t>& ends) {
    std::size_t begin = 0;
    for (std::size_t k = 0; k < ends.size(); ++k) {
      const ResidentTensors& tensors = *pass_.set.updates[batch.updates[k]]->values->resident();
      const TensorGather gather = {tensors.table(), ends[k] - begin,
                                   device_input_.as<GatheredTile>(at.gathered) + begin,
                                   batch.form.codes, nullptr};  // sums look at limits
      stream_.device().check(stream_.device().api().tensors->gather(stream_.launch(), gather),
                             "launching the gathering of tiles");
      begin = ends[k];
    }
  }

  // Brings codes and makes floats of them.
  void unpack_batch(const WindowBatch& batch, const BatchPlaces& at) {
    const PackedBatch packed(pass_.layout, pass_.set, batch, pass_.threads);
    const PackedMemory memory = {input_.as<std::byte>(), device_input_.as<unsigned char>(),
                                 unpacked_.as<unsigned char>(), false};
    const std::size_t end = packed.write(*window_, at.packed, memory);
    stream_.to_device(device_input_.as<void>(), input_.as<void>(), end);
    packed.decode(stream_, *window_, at.packed, memory);
  }

  // Brings what sums take as it is, and gathers what is there.
  void bring_batch(const WindowBatch& batch, const BatchPlaces& at) {
    const auto gathered =
        batch.form.resident ? write_gathered(batch, at) : std::vector<std::size_t>();
    stream_.to_device(device_input_.as<void>(), input_.as<void>(), at.copied(batch.form));
    gather_batch(batch, at, gathered);
  }

  void sum_batch(std::size_t number) {
    const WindowBatch& batch = pass_.batches[number];
    const BatchPlaces at(batch, window_->tiles);
    write_terms(batch, at);
    if (batch.form.packed())
      unpack_batch(batch, at);
    else
      bring_batch(batch, at);
    const WindowSum sum = {
        .kind = batch.form.summed(),
        .scale_format = batch.form.scales,
        .scale_block = batch.form.scale_block,
        .updates = batch.updates.size(),
        .tiles = window_->tiles,
        .term = device_input_.as<WindowTerm>(at.terms),
        .first = number == 0 && !pass_.kept,
        .sums = window_sums(),
        .beyond = device_result_.as<std::uint32_t>(result_places_.beyond),
    };
    const MeanLaunchers& kernels = *stream_.device().api().mean;
    const bool last = number + 1 == pass_.batches.size();
    const int status = last && pass_.end.wanted()
                           ? kernels.mean_window(stream_.launch(), sum, window_means())
                           : kernels.sum_window(stream_.launch(), sum);
    stream_.device().check(status, "launching the sum of a window", at.places.bytes());
  }

  // Of sums that are kept; or of none: a rule may leave out all updates, and divide by a total
  // weight all the same.
  void take_means() {
    if (!pass_.kept) stream_.clear(sums_.as<void>(), sums_.bytes());
    stream_.device().check(
        stream_.device().api().mean->take_means(stream_.launch(), window_means()),
        "launching the means of a window");
  }

  std::uint64_t* window_sums() const {
    return pass_.kept ? pass_.kept->sums + window_->first_tile * kTile : sums_.as<std::uint64_t>();
  }

  WindowMeans window_means() const {
    return {
        .tiles = window_->tiles,
        .total_weight = pass_.set.total_weight,
        .divisor = device_input_.as<TileDivisor>(input_bytes_ + mean_places_.divisors),
        .format = device_input_.as<MeanFormat>(input_bytes_ + mean_places_.formats),
        .sums = window_sums(),
        .means = device_result_.as<void>(result_places_.means),
        .wide = pass_.wide,
    };
  }

  const Pass& pass_;
  const DeviceStream stream_;
  const std::size_t input_bytes_;
  const MeanPlaces mean_places_;
  const ResultPlaces result_places_;
  const PinnedBuffer input_;
  const DeviceBuffer device_input_;
  const DeviceBuffer sums_;
  const DeviceBuffer unpacked_;
  const DeviceBuffer device_result_;
  const PinnedBuffer result_;
  std::optional<StepWindow> step_;
  std::optional<Window> window_;
};

std::size_t window_tiles(const Pass& pass, std::size_t total) {
  std::size_t tile_bytes = 1;
  for (const WindowBatch& batch : pass.batches)
    tile_bytes = std::max(tile_bytes, batch.updates.size() * batch.form.tile_bytes());
  return std::min(total, most_window_tiles(tile_bytes));
}

void walk(const Pass& pass, const Device& device) {
  const std::size_t total = count_tiles(pass.layout, kFloatGroup);
  if (total == 0) return;
  const std::size_t tiles = window_tiles(pass, total);
  const OnDevice on(device);
  walk_tiles<Slot>(pass.set, total, tiles,
                   [&](std::optional<Slot>& slot) { slot.emplace(pass, device, tiles); });
}

void take_set(const Device& device, const Layout& layout, const UpdateSnapshot& set,
              unsigned threads, const MeanEnd& end) {
  require_updates(set.total_weight);
  walk({layout, set, threads, needs_double(layout),
        window_batches(layout, set, device, pass_memory.window_bytes), end},
       device);
}

void take_kept(const Device& device, const Layout& layout, const KeptSums& sums,
               std::uint64_t total_weight, unsigned threads, const MeanEnd& end) {
  const UpdateSnapshot nothing = {{}, {}, total_weight};
  walk({layout, nothing, threads, needs_double(layout), {}, end, sums}, device);
}

}  // namespace

void use_pass_memory(const PassMemory& memory) { pass_memory = memory; }
const PassMemory& current_pass_memory() { return pass_memory; }

std::size_t most_window_tiles(std::size_t tile_bytes) {
  return std::min(std::max<std::size_t>(1, pass_memory.window_bytes / tile_bytes),
                  pass_memory.window_tiles);
}

void take_float_mean_on(const Device& device, const Layout& layout, const UpdateSnapshot& set,
                        unsigned threads, const MeanSink& sink) {
  take_set(device, layout, set, threads, {.sink = &sink});
}

void step_float_mean_on(const Device& device, const Layout& layout, const UpdateSnapshot& set,
                        unsigned threads, const ServerStep& step) {
  take_set(device, layout, set, threads, {.step = &step});
}

// The reference to an update is one for the time of the call.
void add_update_on(const Device& device, const Layout& layout, const CommittedUpdate& update,
                   const Share& share, unsigned threads, const KeptSums& sums) {
  const std::shared_ptr<const CommittedUpdate> borrowed(std::shared_ptr<const void>(), &update);
  const UpdateSnapshot one = {{borrowed}, {share}, 1};
  walk({layout,
        one,
        threads,
        needs_double(layout),
        window_batches(layout, one, device, pass_memory.window_bytes),
        {},
        sums},
       device);
}

void take_kept_mean_on(const Device& device, const Layout& layout, const KeptSums& sums,
                       std::uint64_t total_weight, unsigned threads, const MeanSink& sink) {
  take_kept(device, layout, sums, total_weight, threads, {.sink = &sink});
}

void step_kept_mean_on(const Device& device, const Layout& layout, const KeptSums& sums,
                       std::uint64_t total_weight, unsigned threads, const ServerStep& step) {
  take_kept(device, layout, sums, total_weight, threads, {.step = &step});
}

}  // namespace veilsum
