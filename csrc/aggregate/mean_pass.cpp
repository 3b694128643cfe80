#include "aggregate/mean_pass.h"

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "aggregate/scale.h"
#include "aggregate/tiles.h"
#include "aggregate/write_means.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

// The smallest e, or one more, with weight * gain * largest < 2^e. A small gain counts: what it
// makes small must not cost the others their bits.
int term_exponent(const Share& share, double largest) {
  return exponent_above(largest) + exponent_above(static_cast<std::uint64_t>(share.weight)) +
         std::min(0, exponent_above(share.gain));
}

// The sums of one tile of group 1 are being made.
struct TileSum {
  const UpdateSnapshot& set;
  std::size_t index;
  Tile tile;
  int exponent;
  std::uint64_t* sums;

  const CommittedUpdate& update(std::size_t i) const { return *set.updates[i]; }
  double largest(std::size_t i) const { return set.updates[i]->tiles[index].largest; }
  double factor(std::size_t i) const { return set.shares[i].factor(exponent); }
};

// Updates that are kept encoded, codec by codec.
void sum_codes(const TileSum& sum) {
  std::vector<WeightedTile> tiles;
  const ValueCodec* codec = nullptr;
  for (std::size_t i = 0; i < sum.set.updates.size(); ++i) {
    const std::optional<CodedTile> coded = sum.update(i).values->coded(sum.tile);
    if (sum.largest(i) == 0) continue;
    if (sum.update(i).values->adds_whole_tiles())
      sum.update(i).values->add(sum.tile, sum.factor(i), sum.sums);
    if (!coded) continue;
    const ValueCodec* own = &value_codec(coded->form.codec);
    if (own != codec && !tiles.empty()) {
      codec->add_all(tiles, sum.sums);
      tiles.clear();
    }
    codec = own;
    tiles.push_back({*coded, sum.factor(i)});
  }
  if (!tiles.empty()) codec->add_all(tiles, sum.sums);
}

// A part whose values have to be gathered first.
void sum_gathered(const TileSum& sum, std::size_t i, const TensorPart& part) {
  const CommittedUpdate& update = sum.update(i);
  const Tile tile{sum.tile.first + part.offset, part.count};
  const auto screened = [&] {
    return update.values->screen(tile, update.site, Screening::magnitudes);
  };
  if (update.may_have_changed() && screened().largest > sum.largest(i)) refuse_changed();
  if (sum.largest(i) > 0) update.values->add(tile, sum.factor(i), sum.sums + part.offset);
}

// The largest float that is not refused: a tile may have f64 tensors too, whose values are beyond
// every float, and an infinity that somebody wrote meanwhile must not be within the limit.
float float_limit(double largest) {
  return static_cast<float>(std::min(largest, double{std::numeric_limits<float>::max()}));
}

// Where values lie as floats, updates are added together. The scale rests on what was
// screened, which is looked at again where it may have changed.
void sum_part(const TileSum& sum, const TensorPart& part) {
  std::vector<Stream> streams;
  streams.reserve(sum.set.updates.size());
  for (std::size_t i = 0; i < sum.set.updates.size(); ++i) {
    const UpdateReader& reader = *sum.update(i).values;
    if (reader.adds_whole_tiles() || reader.coded(sum.tile)) continue;
    if (const WireFloat* values = reader.floats(sum.tile, part))
      streams.push_back({values, sum.factor(i), float_limit(sum.largest(i))});
    else
      sum_gathered(sum, i, part);
  }
  if (!kernels().codec.add_f32_streams(streams.data(), streams.size(), part.count,
                                       sum.sums + part.offset))
    refuse_changed();
}

void sum_integers(const UpdateSnapshot& set, const Tile& tile, __int128* sums) {
  std::array<std::int64_t, kTile> room;
  for (std::size_t k = 0; k < set.updates.size(); ++k) {
    set.updates[k]->values->read(tile, "", {room.data(), tile.count});
    for (std::size_t i = 0; i < tile.count; ++i)
      sums[i] += static_cast<__int128>(room[i]) * set.shares[k].weight;
  }
}

}  // namespace

int tile_exponent(const UpdateSnapshot& set, std::size_t index) {
  int e = -2000;  // below every exponent: a tile of zeros
  for (std::size_t i = 0; i < set.updates.size(); ++i)
    if (const double largest = set.updates[i]->tiles[index].largest; largest > 0)
      e = std::max(e, term_exponent(set.shares[i], largest));
  return scale_exponent(e, set.updates.size());
}

void take_float_mean(const Layout& layout, const UpdateSnapshot& set, unsigned threads,
                     const MeanSink& sink) {
  require_updates(set.total_weight);
  const std::size_t release_tiles = set.release_tiles();
  for_each_tile(layout, kFloatGroup, threads, [&](std::size_t index, const Tile& tile) {
    std::array<std::uint64_t, kTile> sums{};
    const int exponent = tile_exponent(set, index);
    const TileSum sum{set, index, tile, exponent, sums.data()};
    sum_codes(sum);
    for_each_part(layout, kFloatGroup, tile.first, tile.count,
                  [&](const TensorPart& part) { sum_part(sum, part); });
    sink.floats(tile, sums.data(), {exponent, set.total_weight});
    if ((index + 1) % release_tiles == 0) set.release_pages();
  });
}

void take_integer_mean(const Layout& layout, const UpdateSnapshot& set, unsigned threads,
                       const MeanSink& sink) {
  require_updates(set.total_weight);
  for_each_tile(layout, kIntegerGroup, threads, [&](std::size_t, const Tile& tile) {
    std::vector<__int128> sums(tile.count);
    sum_integers(set, tile, sums.data());
    sink.integers(tile, sums.data(), set.total_weight);
  });
}

void take_mean(const Layout& layout, const UpdateSnapshot& set, unsigned threads,
               const MeanSink& sink) {
  take_float_mean(layout, set, threads, sink);
  take_integer_mean(layout, set, threads, sink);
}

}  // namespace veilsum
