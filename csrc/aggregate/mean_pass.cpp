#include "aggregate/mean_pass.h"

#include <algorithm>
#include <array>
#include <vector>

#include "aggregate/scale.h"
#include "aggregate/tiles.h"
#include "aggregate/write_means.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

// Updates read side by side: as many streams as memory is read ahead for.
constexpr std::size_t kStreams = 12;

int tile_exponent(const UpdateSnapshot& set, std::size_t index) {
  int e = -2000;  // below every exponent: a tile of zeros
  for (const auto& update : set.updates)
    if (const double largest = update->tiles[index].largest; largest > 0)
      e = std::max(e, exponent_above(largest) +
                          exponent_above(static_cast<std::uint64_t>(update->share.weight)));
  return scale_exponent(e, set.updates.size());
}

// Where an update's values lie as floats they are read side by side with the others'; what
// else there is comes one by one. The scale rests on what was screened.
void sum_floats(const UpdateSnapshot& set, std::size_t index, const Tile& tile, int exponent,
                std::uint64_t* sums) {
  std::vector<Stream> streams;
  for (const auto& update : set.updates) {
    const double largest = update->tiles[index].largest;
    const double factor = update->share.factor(exponent);
    if (const WireFloat* values = update->values->floats(tile)) {
      streams.push_back({values, factor, static_cast<float>(largest)});
      continue;
    }
    if (update->may_have_changed() &&
        update->values->screen(tile, update->site, Screening::magnitudes).largest > largest)
      refuse_changed();
    if (largest > 0) update->values->add(tile, factor, sums);
  }
  const auto add_streams = kernels().codec.add_f32_streams;
  for (std::size_t begin = 0; begin < streams.size(); begin += kStreams)
    if (!add_streams(streams.data() + begin, std::min(kStreams, streams.size() - begin), tile.count,
                     sums))
      refuse_changed();
}

void sum_integers(const UpdateSnapshot& set, const Tile& tile, __int128* sums) {
  std::array<std::int64_t, kTile> room;
  for (const auto& update : set.updates) {
    update->values->read(tile, "", {room.data(), tile.count});
    for (std::size_t i = 0; i < tile.count; ++i)
      sums[i] += static_cast<__int128>(room[i]) * update->share.weight;
  }
}

}  // namespace

void take_mean(const Layout& layout, const UpdateSnapshot& set, unsigned threads,
               const MeanSink& sink) {
  require_updates(set.total_weight);
  for_each_tile(layout, kFloatGroup, threads, [&](std::size_t index, const Tile& tile) {
    std::array<std::uint64_t, kTile> sums{};
    const int exponent = tile_exponent(set, index);
    sum_floats(set, index, tile, exponent, sums.data());
    sink.floats(tile, sums.data(), {exponent, set.total_weight});
  });
  for_each_tile(layout, kIntegerGroup, threads, [&](std::size_t, const Tile& tile) {
    std::vector<__int128> sums(tile.count);
    sum_integers(set, tile, sums.data());
    sink.integers(tile, sums.data(), set.total_weight);
  });
}

}  // namespace veilsum
