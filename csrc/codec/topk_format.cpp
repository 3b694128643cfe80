// topk: the largest coordinates of a chunk, as indices and values.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "codec/format.h"
#include "codec/topk.h"
#include "element/half.h"

namespace veilsum {
namespace {

std::size_t tile_count(std::uint64_t count) { return (count + kTopKTile - 1) / kTopKTile; }

// A zero stands for a coordinate that nobody chose, so it fills the first free place: then
// one set of values has one chunk, and nothing can be told in the choice of places.
void check_value(const ChunkView& chunk, std::size_t at, std::size_t entry, float value) {
  if (!std::isfinite(value)) refuse_value(chunk, at, "is not finite");
  if (value != 0) return;
  if (std::signbit(value)) refuse_value(chunk, at, "is a negative zero");
  if (at != entry)
    refuse_value(chunk, at, "is kept although it is zero and others before it are not");
}

// Checks the entries of the tile that begins at `begin`, from number `entry` on.
void check_tile(const ChunkView& chunk, const TopKSections& sections, std::size_t begin,
                std::size_t first_entry, std::size_t count) {
  const std::size_t length = std::min<std::size_t>(kTopKTile, chunk.header.count - begin);
  std::size_t next = 0;
  for (std::size_t entry = first_entry; entry < first_entry + count; ++entry) {
    const unsigned index = topk_index(sections.indices, entry);
    if (index >= length) refuse_value(chunk, begin, "starts a tile with an index beyond its end");
    // Ascending also means that none comes twice and counts twice.
    if (index < next) refuse_value(chunk, begin, "starts a tile whose indices do not ascend");
    check_value(chunk, begin + index, entry, sections.value(entry));
    next = index + 1;
  }
}

class TopKFormat final : public CodecFormat {
 public:
  SectionSizes sizes(std::uint16_t codec, std::uint64_t count) const override {
    const std::size_t kept = topk_kept(count, codec_sparsity(codec));
    return {2 * tile_count(count),
            topk_index_bytes(kept) + kept * scale_bytes(codec_scales(codec))};
  }

  void check(const ChunkView& chunk) const override {
    const TopKSections sections = topk_sections(chunk);
    std::size_t entry = 0;
    for (std::size_t tile = 0; tile < tile_count(chunk.header.count); ++tile) {
      const std::size_t count = sections.tile_counts[tile];
      if (count > sections.kept - entry)
        refuse_value(chunk, tile * kTopKTile, "starts a tile that keeps more than the chunk does");
      check_tile(chunk, sections, tile * kTopKTile, entry, count);
      entry += count;
    }
    if (entry != sections.kept)
      refuse_value(chunk, 0, "starts a chunk that keeps fewer coordinates than it must");
    if (entry % 2 == 1 && std::to_integer<unsigned>(sections.values[-1]) >> 4 != 0)
      throw DecodeError("a padding bit after the chunk's last index is set");
  }
};

constexpr TopKFormat kTopK;

}  // namespace

float TopKSections::value(std::size_t entry) const {
  if (format == ScaleFormat::f16)
    return widen_half(reinterpret_cast<const WireHalf*>(values)[entry]);
  return reinterpret_cast<const WireFloat*>(values)[entry];
}

TopKEntries topk_entries(const TopKSections& sections, std::size_t tile) {
  std::size_t before = 0;  // not by std::accumulate, to which the counts would be aligned
  for (std::size_t i = 0; i < tile; ++i) before += sections.tile_counts[i];
  const std::size_t first = std::min(before, sections.kept);
  const std::size_t most = std::min(kTopKTile, sections.kept - first);
  return {first, std::min<std::size_t>(sections.tile_counts[tile], most)};
}

TopKSections topk_sections(std::uint16_t codec, std::uint64_t count,
                           std::span<const std::byte> tile_counts,
                           std::span<const std::byte> codes) {
  const std::size_t kept = topk_kept(count, codec_sparsity(codec));
  return {reinterpret_cast<const WireHalf*>(tile_counts.data()), kept, codes.data(),
          codes.data() + topk_index_bytes(kept), codec_scales(codec)};
}

const CodecFormat& topk_format() { return kTopK; }

}  // namespace veilsum
