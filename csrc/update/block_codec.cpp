#include "update/block_codec.h"

#include <cmath>
#include <cstring>

#include "codec/format.h"
#include "element/half.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

constexpr double kLargestFloat = 0x1.fffffep127;
constexpr float kHalfOverflow = 65520;  // the smallest float that becomes infinite as f16

// The scale with which `max_abs` has the code `largest`, as a float.
float float_scale(float max_abs, double largest) {
  const float scale = max_abs / static_cast<float>(largest);
  // Division may have rounded up so far that the largest code stands for more than any float;
  // the next smaller scale is then the right one.
  if (scale * largest > kLargestFloat) return std::nextafter(scale, 0.0F);
  return scale;
}

// The smallest float whose block gets an infinite f16 scale.
float half_scale_overflow(double largest) {
  float value = std::nextafter(static_cast<float>(kHalfOverflow * largest), INFINITY);
  for (;;) {
    const float smaller = std::nextafter(value, 0.0F);
    if (float_scale(smaller, largest) < kHalfOverflow) return value;
    value = smaller;
  }
}

}  // namespace

TileScales read_scales(const CodedTile& tile) {
  const BlockScales scales(tile.chunk);
  TileScales found;
  found.range = {tile.count, scales.block()};
  found.blocks = block_count(tile.count, scales.block());
  scales.read(tile.begin / scales.block(), found.blocks, found.scale.data());
  return found;
}

TileScales scales_for(const CodePiece& piece, std::size_t count) {
  TileScales scales;
  scales.range = {count, scale_block(piece.header.codec)};
  scales.blocks = block_count(count, scales.range.block);
  return scales;
}

bool write_scales(const CodePiece& piece, const CodeRange& range, TileScales& scales) {
  const ScaleFormat format = codec_scales(piece.header.codec);
  std::byte* out = piece.scales.data() + scale_bytes(format) * (piece.begin / scales.range.block);
  for (std::size_t block = 0; block < scales.blocks; ++block, out += scale_bytes(format)) {
    float& scale = scales.scale[block];
    if (format == ScaleFormat::f16) scale = widen_half(narrow_half(scale));
    if (!std::isfinite(scale)) return false;
    if (!is_legal_scale(scale, range.smallest, range.largest)) scale = 0;
    const std::uint16_t half = narrow_half(scale);
    if (format == ScaleFormat::f16)
      std::memcpy(out, &half, sizeof half);
    else
      std::memcpy(out, &scale, sizeof scale);
  }
  return true;
}

double BlockCodec::overflow_threshold(std::uint16_t codec) const {
  if (codec_scales(codec) != ScaleFormat::f16) return PieceCodec::overflow_threshold(codec);
  // Wider values are rounded to floats first: from half-way to that float on they become it.
  const float bound = half_scale_overflow(range_.largest);
  return (double{bound} + double{std::nextafter(bound, 0.0F)}) / 2;
}

bool BlockCodec::refuses_not_finite(std::uint16_t codec) const {
  return codec_scales(codec) != ScaleFormat::none;  // it shows in a block's largest value
}

bool BlockCodec::write(std::span<const float> values, const CodePiece& piece) const {
  TileScales scales = scales_for(piece, values.size());
  if (codec_scales(piece.header.codec) == ScaleFormat::none) {
    scales.scale[0] = 1;
    return write_codes(values, scales, piece);
  }
  kernels().block.max_blocks(values.data(), scales.range, scales.scale.data());
  for (std::size_t block = 0; block < scales.blocks; ++block) {
    if (!std::isfinite(scales.scale[block])) return false;
    scales.scale[block] = float_scale(scales.scale[block], range_.largest);
  }
  return write_scales(piece, range_, scales) && write_codes(values, scales, piece);
}

}  // namespace veilsum
