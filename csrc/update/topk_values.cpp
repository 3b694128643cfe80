// topk: values of the kept coordinates, zero everywhere else.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <vector>

#include "base/parallel.h"
#include "codec/topk.h"
#include "element/fixed_point.h"
#include "element/half.h"
#include "kernels/dispatch.h"
#include "update/value_codec.h"
#include "update/values.h"

namespace veilsum {
namespace {

static_assert(kTopKTile == kCodedTile);

// Entries of one tile. Indices were checked before, and are bounded again like counts.
struct Entries {
  TopKSections sections;
  TopKEntries own;
  std::size_t length;  // of the tile

  // Calls use(index within the tile, value).
  template <class Use>
  void for_each(Use&& use) const {
    for (std::size_t entry = own.first; entry < own.first + own.count; ++entry)
      if (const unsigned index = topk_index(sections.indices, entry); index < length)
        use(index, sections.value(entry));
  }
};

Entries entries_of(const CodedTile& tile) {
  const TopKSections sections = topk_sections(tile.chunk);
  return {sections, topk_entries(sections, tile.begin / kTopKTile), tile.count};
}

// --- choosing ---------------------------------------------------------------------

std::uint32_t magnitude(float value) { return std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFu; }
std::uint32_t magnitude(std::uint32_t bits) { return bits; }

// What is kept: every magnitude above `bits`, and the first `ties` that are equal to it.
struct Cut {
  std::uint32_t bits;
  std::size_t ties;
};

// The digit at `shift` of the cut, which is one of the values; those that share it.
template <class Value>
std::vector<std::uint32_t> take_digit(std::span<const Value> values, unsigned shift, Cut& cut) {
  constexpr std::uint32_t kDigit = 2047;
  // Two tables in turns: neighbours are often alike, and a count would wait for the one before.
  std::array<std::array<std::uint32_t, kDigit + 1>, 2> counts{};
  for (std::size_t i = 0; i < values.size(); ++i)
    ++counts[i & 1][magnitude(values[i]) >> shift & kDigit];
  const auto count = [&](std::uint32_t digit) { return counts[0][digit] + counts[1][digit]; };
  std::uint32_t found = kDigit;
  while (count(found) < cut.ties) cut.ties -= count(found--);
  cut.bits |= found << shift;
  std::vector<std::uint32_t> alike(count(found) + 1);  // and room for one that is none
  std::size_t taken = 0;
  for (const Value value : values) {
    alike[taken] = magnitude(value);
    taken += (magnitude(value) >> shift & kDigit) == found;
  }
  alike.resize(taken);
  return alike;
}

// Radix selection from the highest bits down. Patterns order like magnitudes.
Cut find_cut(std::span<const float> values, std::size_t kept) {
  Cut cut = {0, kept};
  const auto first = take_digit(values, 20, cut);
  const auto second = take_digit(std::span<const std::uint32_t>(first), 9, cut);
  // Nine bits are left. The one between digits was part of the second one too.
  take_digit(std::span<const std::uint32_t>(second), 0, cut);
  return cut;
}

// --- writing ----------------------------------------------------------------------

void put_index(std::byte* indices, std::size_t entry, unsigned index) {
  auto* bytes = reinterpret_cast<std::uint8_t*>(indices) + entry / 2 * 3;
  if (entry % 2 == 0) {
    bytes[0] = static_cast<std::uint8_t>(index);
    bytes[1] = static_cast<std::uint8_t>(index >> 8);
  } else {
    bytes[1] |= static_cast<std::uint8_t>(index << 4);
    bytes[2] = static_cast<std::uint8_t>(index >> 4);
  }
}

void put_value(std::byte* values, std::size_t entry, ScaleFormat format, float value) {
  if (value == 0) value = 0;  // not the negative one
  if (format == ScaleFormat::f16)
    reinterpret_cast<WireHalf*>(values)[entry] = narrow_half(value);
  else
    reinterpret_cast<WireFloat*>(values)[entry] = value;
}

// Writes the entries of the chunk's tiles one after the other.
class EntryWriter {
 public:
  EntryWriter(std::span<std::byte> counts, std::span<std::byte> codes, std::size_t kept,
              ScaleFormat format)
      : counts_(reinterpret_cast<WireHalf*>(counts.data())),
        indices_(codes.data()),
        values_(codes.data() + topk_index_bytes(kept)),
        format_(format) {}

  void write(std::span<const float> values, Cut cut) {
    for (std::size_t begin = 0; begin < values.size(); begin += kTopKTile) {
      const std::size_t before = written_;
      write_tile(values.subspan(begin, std::min(kTopKTile, values.size() - begin)), cut);
      counts_[begin / kTopKTile] = static_cast<std::uint16_t>(written_ - before);
    }
  }

 private:
  void write_tile(std::span<const float> tile, Cut& cut) {
    for (std::size_t i = 0; i < tile.size(); ++i) {
      if (magnitude(tile[i]) < cut.bits) continue;
      if (magnitude(tile[i]) == cut.bits) {
        if (cut.ties == 0) continue;
        --cut.ties;
      }
      put_index(indices_, written_, static_cast<unsigned>(i));
      put_value(values_, written_++, format_, tile[i]);
    }
  }

  WireHalf* counts_;
  std::byte* indices_;
  std::byte* values_;
  ScaleFormat format_;
  std::size_t written_ = 0;
};

// The values as they will be read again, so that the choice is made among those. False if one
// is not finite or does not fit.
bool round_values(std::span<float> values, ScaleFormat format) {
  constexpr std::uint32_t kInfinity = 0x7F800000;
  if (kernels().codec.max_abs32(values.data(), values.size()) >= kInfinity) return false;
  if (format == ScaleFormat::f32) return true;
  for (float& value : values) value = widen_half(narrow_half(value));
  return kernels().codec.max_abs32(values.data(), values.size()) < kInfinity;
}

class TopKValues final : public ValueCodec {
 public:
  constexpr explicit TopKValues(ScaleFormat format) : format_(format) {}

  void decode(const CodedTile& tile, std::span<float> values) const override {
    std::fill(values.begin(), values.end(), 0.0f);
    entries_of(tile).for_each([&](unsigned index, float value) { values[index] = value; });
  }

  double largest(const CodedTile& tile) const override {
    float largest = 0;
    entries_of(tile).for_each(
        [&](unsigned, float value) { largest = std::max(largest, std::fabs(value)); });
    return largest;
  }

  void add(const CodedTile& tile, double factor, std::uint64_t* sums) const override {
    entries_of(tile).for_each([&](unsigned index, float value) {
      sums[index] += to_fixed_point(static_cast<double>(value) * factor);
    });
  }

  double overflow_threshold(std::uint16_t) const override {
    return veilsum::overflow_threshold(format_ == ScaleFormat::f16 ? DType::f16 : DType::f32);
  }

  void encode(const Layout& layout, TensorData tensors, const EncodePlan& plan,
              const ChunkGrid& grid, std::span<std::byte* const> chunks) const override {
    parallel_for(chunks.size(), 1, plan.threads, [&](const Range& range) {
      const ChunkHeader header = grid.header(range.index);
      // Values narrowed twice go the first time to odd.
      const Narrowing narrowing = format_ == ScaleFormat::f16 ? Narrowing::odd : Narrowing::nearest;
      std::vector<float> values(header.count);
      gather(layout, tensors, header.first, narrowing, values);
      if (!round_values(values, format_)) refuse_values(layout, tensors, header.codec);
      write(header, values, chunks[range.index]);
    });
  }

 private:
  void write(const ChunkHeader& header, std::span<const float> values, std::byte* chunk) const {
    const SectionSizes sizes = section_sizes(header.codec, header.count);
    const std::span counts(chunk + scales_offset(), sizes.scales);
    const std::span codes(chunk + codes_offset(header.codec, header.count), sizes.codes);
    const std::size_t kept = topk_kept(header.count, codec_sparsity(header.codec));
    EntryWriter(counts, codes, kept, format_).write(values, find_cut(values, kept));
    write_chunk(header, counts, codes, chunk);
  }

  ScaleFormat format_;
};

constexpr TopKValues kTopK(ScaleFormat::f32);
constexpr TopKValues kTopKHalf(ScaleFormat::f16);

}  // namespace

const ValueCodec& topk_values(ScaleFormat format) {
  return format == ScaleFormat::f16 ? kTopKHalf : kTopK;
}

}  // namespace veilsum
