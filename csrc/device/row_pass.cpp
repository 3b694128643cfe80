#include "device/row_pass.h"

#include <utility>

#include "base/parallel.h"
#include "device/window_form.h"

namespace veilsum {
namespace {

// The copy is what is looked at: the caller could change its own tensors afterwards.
template <class Value>
void require_unchanged(const Value* values, std::size_t count, double largest) {
  const auto within = [largest](Value value) { return value <= largest && value >= -largest; };
  if (!std::all_of(values, values + count, within)) refuse_changed();
}

}  // namespace

RowPass::RowPass(const Layout& of, const UpdateSnapshot& from, unsigned most_threads,
                 std::vector<std::size_t> chosen)
    : layout(of),
      set(from),
      threads(most_threads),
      wide(needs_double(of)),
      tiles(count_tiles(of, kFloatGroup)),
      updates(std::move(chosen)) {}

Tile RowPass::tile(std::size_t index) const {
  const std::uint64_t first = std::uint64_t{index} * kTile;
  const std::uint64_t left = layout.group_size(kFloatGroup) - first;
  return {first, static_cast<std::size_t>(std::min<std::uint64_t>(kTile, left))};
}

void RowPass::write(const Window& window, std::byte* values) const {
  const WindowForm form = {wide ? WindowCodes::f64 : WindowCodes::f32, WindowScales::none, 0};
  parallel_for(window.tiles * updates.size(), 1, threads, [&](const Range& range) {
    const std::size_t k = range.index / window.tiles;
    const std::size_t t = range.index % window.tiles;
    const CommittedUpdate& update = *set.updates[updates[k]];
    const Tile place = tile(window.first_tile + t);
    std::byte* const out = values + row_place(k, window.tiles) + t * tile_bytes();
    write_window_tile(form, update, place, out, nullptr);
    if (!update.may_have_changed()) return;
    const double largest = update.tiles[window.first_tile + t].largest;
    if (wide)
      require_unchanged(reinterpret_cast<const double*>(out), place.count, largest);
    else
      require_unchanged(reinterpret_cast<const float*>(out), place.count, largest);
  });
}

void RowPass::write_formats(const Window& window, MeanFormat* formats) const {
  std::fill_n(formats, window.tiles * kTile / kFormatBlock, MeanFormat::f32);
  const std::uint64_t first = std::uint64_t{window.first_tile} * kTile;
  for_each_part(layout, kFloatGroup, first, window.tiles * kTile, [&](const TensorPart& part) {
    std::fill_n(formats + part.offset / kFormatBlock,
                (part.count + kFormatBlock - 1) / kFormatBlock,
                mean_format(layout.tensors()[part.tensor].dtype));
  });
}

}  // namespace veilsum
