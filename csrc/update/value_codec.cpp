#include "update/value_codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <string>

#include "base/error.h"
#include "base/parallel.h"
#include "codec/codecs.h"
#include "kernels/dispatch.h"
#include "update/values.h"

namespace veilsum {
namespace {

constexpr std::uint32_t kInfinity = 0x7F800000;

bool all_finite(std::span<const float> values) {
  return kernels().codec.max_abs32(values.data(), values.size()) < kInfinity;
}

// Works through pieces that stay in the first-level cache. False if `write` says so of one.
template <class Write>
bool write_pieces(const Layout& layout, TensorData tensors, Narrowing narrowing,
                  const ChunkHeader& header, const Write& write) {
  std::array<float, kCodedTile> room;
  for (std::size_t begin = 0; begin < header.count; begin += kCodedTile) {
    const std::span values(room.data(), std::min<std::size_t>(kCodedTile, header.count - begin));
    const std::uint64_t first = header.first + begin;
    const float* const place = floats_in_place(layout, tensors, first, values.size());
    if (place == nullptr) gather(layout, tensors, first, narrowing, values);
    if (!write(place == nullptr ? values : std::span(place, values.size()), begin)) return false;
  }
  return true;
}

}  // namespace

double ValueCodec::largest(const CodedTile& tile) const {
  const auto max_abs = kernels().codec.max_abs32;
  if (const WireFloat* values = floats(tile))
    return std::bit_cast<float>(max_abs(values, tile.count));
  std::array<float, kCodedTile> values;
  decode(tile, {values.data(), tile.count});
  return std::bit_cast<float>(max_abs(values.data(), tile.count));
}

double ValueCodec::squares(const CodedTile& tile) const {
  std::uint32_t largest;
  const auto screen = kernels().codec.screen_f32;
  if (const WireFloat* values = floats(tile)) return screen(values, tile.count, &largest);
  std::array<float, kCodedTile> values;
  decode(tile, {values.data(), tile.count});
  return screen(values.data(), tile.count, &largest);
}

void ValueCodec::add(const CodedTile& tile, double factor, std::uint64_t* sums) const {
  const auto add_f32 = kernels().codec.add_f32;
  if (const WireFloat* values = floats(tile)) return add_f32(values, tile.count, factor, sums);
  std::array<float, kCodedTile> values;
  decode(tile, {values.data(), tile.count});
  add_f32(values.data(), tile.count, factor, sums);
}

void ValueCodec::add_all(std::span<const WeightedTile> tiles, std::uint64_t* sums) const {
  for (const WeightedTile& tile : tiles) add(tile.tile, tile.factor, sums);
}

double ValueCodec::overflow_threshold(std::uint16_t) const {
  return veilsum::overflow_threshold(DType::f32);
}

const ValueCodec& value_codec(std::uint16_t codec) {
  if (ring_bits(codec) != 0) return ring_values();
  if (eden_bits(codec) != 0) return eden_values();
  switch (codec_family(codec)) {
    case kCodecF32:
      return f32_values();
    case kCodecF16:
      return f16_values();
    case kCodecBf16:
      return bf16_values();
    case kCodecInt8:
      return int8_values();
    case kCodecInt4:
      return int4_values();
    case kCodecNf4:
      return nf4_values();
    case kCodecFp4:
      return fp4_values();
    case kCodecFp8E4M3:
      return fp8_e4m3_values();
    case kCodecFp8E5M2:
      return fp8_e5m2_values();
    case kCodecSign:
      return sign_values();
    case kCodecTopK:
      return topk_values(codec_scales(codec));
    default:
      require_float_codec(codec);
      throw ConfigError("codec " + codec_name(codec) + " has no values");
  }
}

void PieceCodec::encode(const Layout& layout, TensorData tensors, const EncodePlan& plan,
                        const ChunkGrid& grid, std::span<std::byte* const> chunks) const {
  const CodeRule rule = {plan.rounding.has_value(), plan.rounding.value_or(PhiloxKey{}), grid.group,
                         plan.least_error};
  parallel_for(chunks.size(), 1, plan.threads, [&](const Range& range) {
    const ChunkHeader header = grid.header(range.index);
    std::byte* const chunk = chunks[range.index];
    const SectionSizes sizes = section_sizes(header.codec, header.count);
    const std::span scales(chunk + scales_offset(), sizes.scales);
    const std::span codes(chunk + codes_offset(header.codec, header.count), sizes.codes);
    const auto write_piece = [&](std::span<const float> values, std::size_t begin) {
      return (refuses_not_finite(header.codec) || all_finite(values)) &&
             write(values, {layout, header, begin, scales, codes, rule});
    };
    if (!write_pieces(layout, tensors, narrowing(header.codec), header, write_piece))
      refuse_values(layout, tensors, header.codec);
    write_chunk(header, scales, codes, chunk);
  });
}

}  // namespace veilsum
