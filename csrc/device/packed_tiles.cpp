#include "device/packed_tiles.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "aggregate/tiles.h"
#include "base/parallel.h"
#include "codec/eden.h"
#include "codec/format.h"
#include "codec/topk.h"
#include "element/bits.h"
#include "update/subsampled.h"

namespace veilsum {
namespace {

constexpr std::size_t kBlock = kTensorAlignment;
constexpr std::size_t kTileBlocks = kTile / kBlock;

// Tiles that one thread writes at a time: those of topk are small.
constexpr std::size_t kTilesOfThread = 8;

// --- what a kernel is told of a tile --------------------------------------------------

TopKEntries entries_of(const CodedTile& tile) {
  return topk_entries(topk_sections(tile.chunk), tile.begin / kTopKTile);
}

// Without its places.
PackedTile packed_tile(const WindowForm& form, const CommittedUpdate& update, const Tile& tile) {
  PackedTile packed = {};
  packed.first = tile.first;
  packed.count = static_cast<unsigned>(tile.count);
  packed.kept = ~std::uint64_t{0};
  packed.gain = 1;
  if (const SubsampledValues* kept = update.values->subsampled()) {
    const KeptTile own = kept->tile(tile.first);
    packed.kept = own.blocks;
    packed.gain = own.gain;
    return packed;
  }
  const CodedTile coded = *update.values->coded(tile);
  if (form.packing == WindowPacking::topk) {
    const TopKEntries entries = entries_of(coded);
    packed.entries = static_cast<unsigned>(entries.count);
    packed.skipped = entries.first % 2;
  } else if (form.packing == WindowPacking::eden) {
    packed.key = eden_rotation(coded.chunk.header).key;
  } else if (form.rotation_block != 0) {
    packed.key = coded.form.transform->rotation.key;
  }
  return packed;
}

// Bytes of a tile's sections as they are copied, each on whole words of a kernel.
struct PackedSizes {
  std::size_t codes;
  std::size_t scales;
};

PackedSizes packed_sizes(const WindowForm& form, const PackedTile& tile) {
  if (form.packing != WindowPacking::topk) return {form.code_bytes(), form.scale_bytes()};
  return {whole_words(topk_index_bytes(tile.skipped + tile.entries)),
          whole_words(tile.entries * bytes_of(form.scales))};
}

// --- what is copied -------------------------------------------------------------------

// Copies runs of a section one after the other, and zeros behind them.
class SectionWriter {
 public:
  SectionWriter(std::byte* to, std::size_t size) : rest_(to, size) {}
  ~SectionWriter() { std::fill(rest_.begin(), rest_.end(), std::byte{0}); }
  SectionWriter(const SectionWriter&) = delete;
  SectionWriter& operator=(const SectionWriter&) = delete;

  void add(std::span<const std::byte> run) {
    const std::size_t size = std::min(run.size(), rest_.size());
    std::memcpy(rest_.data(), run.data(), size);
    rest_ = rest_.subspan(size);
  }

 private:
  std::span<std::byte> rest_;
};

void add_eden_scales(const CodedTile& tile, SectionWriter& scales) {
  std::size_t blocks = 0;
  for_each_eden_block(tile.count, [&](std::size_t, std::size_t, std::size_t) { ++blocks; });
  scales.add(tile.chunk.scales.subspan(tile.begin / kRotationTile * sizeof(float),
                                       blocks * sizeof(float)));
}

void add_block_scales(const WindowForm& form, const CodedTile& run, SectionWriter& scales) {
  if (form.scales == WindowScales::none) return;
  const std::size_t size = bytes_of(form.scales);
  scales.add(run.chunk.scales.subspan(run.begin / form.scale_block * size,
                                      block_count(run.count, form.scale_block) * size));
}

void add_topk(const WindowForm& form, const CodedTile& tile, SectionWriter& indices,
              SectionWriter& values) {
  const TopKSections sections = topk_sections(tile.chunk);
  const TopKEntries own = entries_of(tile);
  const std::size_t size = bytes_of(form.scales);
  indices.add({sections.indices + topk_index_bytes(own.first / 2 * 2),
               topk_index_bytes(own.first % 2 + own.count)});
  values.add({sections.values + own.first * size, own.count * size});
}

// Beyond the end, where steps are zero, any scale will do that can divide.
void write_ring_scales(const WindowForm& form, const CodedTile& tile, std::byte* bytes) {
  auto* const scales = reinterpret_cast<double*>(bytes);
  const Transform* const transform = tile.form.transform.get();
  if (transform == nullptr || !transform->grid) {
    scales[0] = tile.form.scale;
    return;
  }
  std::fill_n(scales, kTile / form.scale_block, 1.0);
  transform->grid->for_each_stretch(tile.chunk.header.first + tile.begin, tile.count,
                                    [&](std::size_t offset, std::size_t count, std::size_t entry) {
                                      std::fill_n(scales + offset / form.scale_block,
                                                  block_count(count, form.scale_block),
                                                  transform->scales[entry]);
                                    });
}

// Calls use(run) for the runs of a tile's codes: several only of a subsampled update, whose tile
// may lie in two chunks.
template <class Use>
void for_each_run(const CommittedUpdate& update, const Tile& tile, const Use& use) {
  if (const SubsampledValues* kept = update.values->subsampled())
    kept->for_each_run(kept->tile(tile.first),
                       [&](const CodedTile& run, std::size_t) { use(run); });
  else
    use(*update.values->coded(tile));
}

void write_sections(const WindowForm& form, const CommittedUpdate& update, const Tile& tile,
                    const PackedSizes& sizes, std::byte* at) {
  SectionWriter codes(at, sizes.codes);
  SectionWriter scales(at + sizes.codes, form.packing == WindowPacking::ring ? 0 : sizes.scales);
  for_each_run(update, tile, [&](const CodedTile& run) {
    if (form.packing == WindowPacking::topk) return add_topk(form, run, codes, scales);
    codes.add(run.chunk.codes.subspan(packed_size(run.begin, form.bits),
                                      packed_size(run.count, form.bits)));
    if (form.packing == WindowPacking::eden)
      add_eden_scales(run, scales);
    else if (form.packing == WindowPacking::ring)
      write_ring_scales(form, run, at + sizes.codes);
    else
      add_block_scales(form, run, scales);
  });
}

}  // namespace

PackedPlaces::PackedPlaces(const WindowForm& form, std::size_t updates, std::size_t tiles,
                           Places& places)
    : table(places.add(form.packed() ? updates * tiles * sizeof(PackedTile) : 0)),
      ends(places.add(form.packed() ? tiles * kTileBlocks : 0)),
      codes(places.add(form.packed() ? updates * tiles * (form.code_bytes() + form.scale_bytes())
                                     : 0)) {}

Tile PackedBatch::tile(std::size_t number, const Window& window) const {
  return tile_at(layout_, kFloatGroup, window.first_tile + number % window.tiles);
}

// How many of each 64 coordinates belong to a tensor: no two tensors share any.
void PackedBatch::write_ends(const Window& window, std::uint8_t* ends) const {
  std::fill_n(ends, window.tiles * kTileBlocks, std::uint8_t{0});
  const std::uint64_t first = std::uint64_t{window.first_tile} * kTile;
  for_each_part(layout_, kFloatGroup, first, window.tiles * kTile, [&](const TensorPart& part) {
    for (std::size_t done = 0; done < part.count; done += kBlock)
      ends[(part.offset + done) / kBlock] =
          static_cast<std::uint8_t>(std::min(kBlock, part.count - done));
  });
}

void PackedBatch::write_table(const Window& window, PackedTile* table) const {
  const std::size_t count = batch_.updates.size() * window.tiles;
  parallel_for(count, kTilesOfThread, threads_, [&](const Range& range) {
    for (std::size_t i = range.begin; i < range.end; ++i)
      table[i] = packed_tile(batch_.form, update(i, window), tile(i, window));
  });
}

// Places one after the other. Returns where the last one ends.
std::size_t PackedBatch::write_places(const Window& window, const PackedPlaces& at,
                                      const PackedMemory& memory) const {
  auto* const table = reinterpret_cast<PackedTile*>(memory.host + at.table);
  const std::size_t value_bytes = kTile * (memory.wide ? sizeof(double) : sizeof(float));
  std::size_t end = at.codes;
  for (std::size_t i = 0; i < batch_.updates.size() * window.tiles; ++i) {
    const PackedSizes sizes = packed_sizes(batch_.form, table[i]);
    table[i].codes = memory.device + end;
    table[i].scales = memory.device + end + sizes.codes;
    table[i].ends = memory.device + at.ends + i % window.tiles * kTileBlocks;
    table[i].values = memory.values + i * value_bytes;
    end += sizes.codes + sizes.scales;
  }
  return end;
}

std::size_t PackedBatch::write(const Window& window, const PackedPlaces& at,
                               const PackedMemory& memory) const {
  auto* const table = reinterpret_cast<PackedTile*>(memory.host + at.table);
  write_ends(window, reinterpret_cast<std::uint8_t*>(memory.host + at.ends));
  write_table(window, table);
  const std::size_t end = write_places(window, at, memory);
  const std::size_t count = batch_.updates.size() * window.tiles;
  parallel_for(count, kTilesOfThread, threads_, [&](const Range& range) {
    for (std::size_t i = range.begin; i < range.end; ++i)
      write_sections(batch_.form, update(i, window), tile(i, window),
                     packed_sizes(batch_.form, table[i]),
                     memory.host + (table[i].codes - memory.device));
  });
  return end;
}

void PackedBatch::decode(const DeviceStream& stream, const Window& window, const PackedPlaces& at,
                         const PackedMemory& memory) const {
  const WindowForm& form = batch_.form;
  const DecodeTiles job = {.packing = form.packing,
                           .kind = form.codes,
                           .scale_format = form.scales,
                           .bits = form.bits,
                           .rotation_block = form.rotation_block,
                           .scale_block = form.scale_block,
                           .subsampled = form.keep != kTileBlocks64,
                           .wide = memory.wide,
                           .group = kFloatGroup,
                           .tiles = batch_.updates.size() * window.tiles,
                           .tile = reinterpret_cast<const PackedTile*>(memory.device + at.table)};
  stream.device().check(stream.device().api().decode->decode(stream.launch(), job),
                        "launching the decoding of tiles",
                        job.tiles * kTile * (memory.wide ? sizeof(double) : sizeof(float)));
}

}  // namespace veilsum
