#include "device/row_pass.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/parallel.h"
#include "device/resident.h"

namespace veilsum {
namespace {

// The copy is what is looked at: the caller could change its own tensors afterwards.
template <class Value>
void require_unchanged_values(const Value* values, std::size_t count, double largest) {
  const auto within = [largest](Value value) { return value <= largest && value >= -largest; };
  if (!std::all_of(values, values + count, within)) refuse_changed();
}

bool has_values(const WindowForm& form) { return !form.resident && !form.packed(); }

std::vector<WindowBatch> row_batches(const Device& device, const Layout& layout,
                                     const UpdateSnapshot& set,
                                     const std::vector<std::size_t>& updates) {
  std::vector<WindowBatch> batches;
  for (const std::size_t number : updates) {
    const WindowForm form = row_form(layout, *set.updates[number], device);
    const auto own = std::find_if(batches.begin(), batches.end(),
                                  [&](const WindowBatch& batch) { return batch.form == form; });
    if (own == batches.end())
      batches.push_back({form, {number}});
    else
      own->updates.push_back(number);
  }
  std::stable_partition(batches.begin(), batches.end(),
                        [](const WindowBatch& batch) { return has_values(batch.form); });
  return batches;
}

// Of all batches in host memory that is copied, values left out.
std::size_t input_bytes(const RowPass& pass, std::size_t tiles) {
  Places places;
  for (const WindowBatch& batch : pass.batches) {
    PackedPlaces(batch.form, batch.updates.size(), tiles, places);
    if (batch.form.resident) places.add(batch.updates.size() * tiles * sizeof(GatheredTile));
  }
  return places.bytes();
}

std::size_t host_value_bytes(const RowPass& pass, std::size_t tiles) {
  std::size_t rows = 0;
  for (const WindowBatch& batch : pass.batches)
    if (has_values(batch.form)) rows += batch.updates.size();
  return rows * tiles * pass.tile_bytes();
}

}  // namespace

RowPass::RowPass(const Device& device, const Layout& of, const UpdateSnapshot& from,
                 unsigned most_threads, std::vector<std::size_t> chosen)
    : layout(of),
      set(from),
      threads(most_threads),
      wide(needs_double(of)),
      tiles(count_tiles(of, kFloatGroup)),
      updates(std::move(chosen)),
      batches(tiles == 0 ? std::vector<WindowBatch>() : row_batches(device, of, from, updates)),
      places(updates.size()) {
  std::vector<std::size_t> number_of(from.updates.size());
  for (std::size_t k = 0; k < updates.size(); ++k) number_of[updates[k]] = k;
  std::size_t row = 0;
  for (const WindowBatch& batch : batches)
    for (const std::size_t number : batch.updates) places[number_of[number]] = row++;
}

std::size_t RowPass::tile_memory() const {
  std::size_t bytes = updates.size() * tile_bytes();
  for (const WindowBatch& batch : batches)
    if (batch.form.packed())
      bytes += batch.updates.size() * (batch.form.code_bytes() + batch.form.scale_bytes());
  return bytes;
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

RowWindow::RowWindow(const RowPass& pass, const DeviceStream& stream, std::size_t tiles)
    : pass_(pass),
      stream_(stream),
      host_values_(stream.device(), host_value_bytes(pass, tiles)),
      input_(stream.device(), input_bytes(pass, tiles)),
      device_input_(stream, input_bytes(pass, tiles)),
      rows_(stream, pass.updates.size() * tiles * pass.tile_bytes()),
      device_beyond_(stream, sizeof(std::uint32_t)),
      beyond_(stream.device(), sizeof(std::uint32_t)) {
  *beyond_.as<std::uint32_t>() = 0;
  stream.clear(device_beyond_.as<void>(), device_beyond_.bytes());
}

void RowWindow::bring(const Window& window) {
  Places places;
  std::size_t row = 0;
  for (const WindowBatch& batch : pass_.batches) {
    if (batch.form.resident)
      bring_resident(window, batch, row, places);
    else if (batch.form.packed())
      bring_packed(window, batch, row, places);
    else
      bring_values(window, batch, row);
    row += batch.updates.size();
  }
}

void RowWindow::bring_values(const Window& window, const WindowBatch& batch,
                             std::size_t first_row) {
  const std::size_t begin = first_row * window.tiles * pass_.tile_bytes();
  const std::size_t count = batch.updates.size() * window.tiles;
  parallel_for(count, 1, pass_.threads, [&](const Range& range) {
    const CommittedUpdate& update = *pass_.set.updates[batch.updates[range.index / window.tiles]];
    const std::size_t index = window.first_tile + range.index % window.tiles;
    const Tile tile = pass_.tile(index);
    std::byte* const out = host_values_.as<std::byte>(begin + range.index * pass_.tile_bytes());
    write_window_tile(batch.form, update, tile, out, nullptr);
    if (!update.may_have_changed()) return;
    const double largest = update.tiles[index].largest;
    if (pass_.wide)
      require_unchanged_values(reinterpret_cast<const double*>(out), tile.count, largest);
    else
      require_unchanged_values(reinterpret_cast<const float*>(out), tile.count, largest);
  });
  stream_.to_device(rows_.as<void>(begin), host_values_.as<void>(begin),
                    count * pass_.tile_bytes());
}

void RowWindow::bring_packed(const Window& window, const WindowBatch& batch, std::size_t first_row,
                             Places& places) {
  const std::size_t begin = places.bytes();
  const PackedPlaces at(batch.form, batch.updates.size(), window.tiles, places);
  const PackedBatch packed(pass_.layout, pass_.set, batch, pass_.threads);
  const PackedMemory memory = {
      input_.as<std::byte>(), device_input_.as<unsigned char>(),
      rows_.as<unsigned char>(first_row * window.tiles * pass_.tile_bytes()), pass_.wide};
  const std::size_t end = packed.write(window, at, memory);
  stream_.to_device(device_input_.as<void>(begin), input_.as<void>(begin), end - begin);
  packed.decode(stream_, window, at, memory);
}

void RowWindow::write_gathered(const Window& window, const CommittedUpdate& update,
                               unsigned char* row, GatheredTile* tiles) const {
  for (std::size_t t = 0; t < window.tiles; ++t) {
    const std::size_t index = window.first_tile + t;
    tiles[t] = {index, row + t * pass_.tile_bytes(),
                std::bit_cast<std::uint64_t>(update.tiles[index].largest)};
  }
}

void RowWindow::bring_resident(const Window& window, const WindowBatch& batch,
                               std::size_t first_row, Places& places) {
  const std::size_t count = batch.updates.size();
  const std::size_t at = places.add(count * window.tiles * sizeof(GatheredTile));
  for (std::size_t k = 0; k < count; ++k)
    write_gathered(window, *pass_.set.updates[batch.updates[k]],
                   rows_.as<unsigned char>((first_row + k) * window.tiles * pass_.tile_bytes()),
                   input_.as<GatheredTile>(at) + k * window.tiles);
  stream_.to_device(device_input_.as<void>(at), input_.as<void>(at),
                    count * window.tiles * sizeof(GatheredTile));
  for (std::size_t k = 0; k < count; ++k) {
    const ResidentTensors& tensors = *pass_.set.updates[batch.updates[k]]->values->resident();
    const TensorGather gather = {
        tensors.table(), window.tiles, device_input_.as<GatheredTile>(at) + k * window.tiles,
        pass_.wide ? WindowCodes::f64 : WindowCodes::f32, device_beyond_.as<std::uint32_t>()};
    stream_.device().check(stream_.device().api().tensors->gather(stream_.launch(), gather),
                           "launching the gathering of rows");
  }
  stream_.to_host(beyond_.as<void>(), device_beyond_.as<void>(), device_beyond_.bytes());
}

void RowWindow::require_unchanged() const {
  if (*beyond_.as<std::uint32_t>() != 0) refuse_changed();
}

}  // namespace veilsum
