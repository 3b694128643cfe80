#include "codec/block_scales.h"

#include <algorithm>
#include <cstring>

#include "codec/format.h"
#include "element/half.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

constexpr unsigned kUnscaledBlock = 4096;

}  // namespace

unsigned scale_block(std::uint16_t codec) {
  const unsigned block = codec_block(codec);
  return block == 0 ? kUnscaledBlock : block;
}

std::size_t scale_section(std::uint16_t codec, std::uint64_t count) {
  return scale_bytes(codec_scales(codec)) * block_count(count, scale_block(codec));
}

BlockScales::BlockScales(const ChunkView& chunk)
    : scales_(chunk.scales.data()),
      format_(codec_scales(chunk.header.codec)),
      block_(scale_block(chunk.header.codec)) {}

float BlockScales::operator[](std::size_t number) const {
  if (format_ == ScaleFormat::none) return 1;
  if (format_ == ScaleFormat::f32) {
    float scale;
    std::memcpy(&scale, scales_ + number * sizeof scale, sizeof scale);
    return scale;
  }
  std::uint16_t half;
  std::memcpy(&half, scales_ + number * sizeof half, sizeof half);
  return widen_half(half);
}

// Tiles are read one after the other, and so few bytes of each that no CPU sees it coming.
void BlockScales::fetch_ahead(std::size_t first, std::size_t count) const {
  const std::byte* const from = scales_ + first * scale_bytes(format_);
  for (std::size_t at = 0; at < count * scale_bytes(format_); at += 64)
    __builtin_prefetch(from + at);
}

void BlockScales::read(std::size_t first, std::size_t count, float* scales) const {
  fetch_ahead(first + 2 * count, count);
  if (format_ == ScaleFormat::none)
    std::fill_n(scales, count, 1.0F);
  else if (format_ == ScaleFormat::f32)
    std::memcpy(scales, scales_ + first * sizeof *scales, count * sizeof *scales);
  else
    kernels().codec.widen_f16(reinterpret_cast<const WireHalf*>(scales_) + first, count, scales);
}

void check_scales(const ChunkView& chunk, const CodeRange& range) {
  const BlockScales scales(chunk);
  const std::size_t blocks = block_count(chunk.header.count, scales.block());
  for (std::size_t block = 0; block < blocks; ++block)
    if (!is_legal_scale(scales[block], range.smallest, range.largest))
      refuse_value(chunk, block * scales.block(),
                   "has a block scale that is negative, not finite, subnormal or too large");
}

void refuse_unscaled(const ChunkView& chunk, std::size_t begin) {
  refuse_value(chunk, begin, "has codes but no scale in its block");
}

}  // namespace veilsum
