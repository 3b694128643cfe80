// The loops over encoded values. Included once per CPU level; everything has internal
// linkage and no inline function of the standard library is called (see ring_loops.inl).
#pragma once

#include "element/half.h"
#include "element/quantize.h"
#include "kernels/checksum.inl"
#include "kernels/codec_kernels.h"
#include "kernels/screen.inl"
#include "kernels/sum_loops.inl"
#include "kernels/uniforms.inl"

namespace veilsum {
namespace {

// --- casts -----------------------------------------------------------------------

void widen_f16(const WireHalf* values, std::size_t count, float* widened) {
  for (std::size_t i = 0; i < count; ++i) widened[i] = widen_half(values[i]);
}

void widen_bf16(const WireHalf* values, std::size_t count, float* widened) {
  for (std::size_t i = 0; i < count; ++i) widened[i] = widen_brain(values[i]);
}

void narrow_f16(const WireFloat* values, std::size_t count, WireHalf* narrowed) {
  for (std::size_t i = 0; i < count; ++i) narrowed[i] = narrow_half(values[i]);
}

void narrow_bf16(const WireFloat* values, std::size_t count, WireHalf* narrowed) {
  for (std::size_t i = 0; i < count; ++i) narrowed[i] = narrow_brain(values[i]);
}

// --- int8 ------------------------------------------------------------------------

constexpr float kSmallestNormal = 0x1p-126f;
constexpr float kLargest = 0x1.fffffep127f;

// The scale of a block; 0 if it would be subnormal, which decoders refuse.
VS_FN float block_scale(float max_abs) {
  const float scale = max_abs / 127;
  // Division may have rounded up so far that 127 * scale is beyond every float; the next
  // smaller scale is then the right one.
  if (static_cast<double>(scale) * 127 > static_cast<double>(kLargest))
    return float_of_bits(bits_of_float(scale) - 1);
  return scale < kSmallestNormal ? 0 : scale;
}

static_assert(kUniformBlock == kInt8Block);

// |y| <= 127.0001. Rounding of the scale and of the dither can reach 128, which is no code.
VS_FN std::int8_t to_code(std::int32_t step) {
  return static_cast<std::int8_t>(step > 127 ? 127 : step < -127 ? -127 : step);
}

VS_FN void encode_block(const float* values, std::size_t count, std::uint64_t first, float scale,
                        const CodeRule& rule, std::int8_t* codes) {
  if (scale == 0) {
    for (std::size_t i = 0; i < count; ++i) codes[i] = 0;
    return;
  }
  const double divisor = scale;
  if (!rule.stochastic) {
    for (std::size_t i = 0; i < count; ++i)
      codes[i] = to_code(round_nearest<std::int32_t>(values[i] / divisor));
    return;
  }
  std::uint32_t uniforms[kUniformBlock];
  write_uniforms(rule.key, rule.group, first, uniforms);
  for (std::size_t i = 0; i < count; ++i)
    codes[i] = to_code(round_stochastic<std::int32_t>(values[i] / divisor, uniforms[i]));
}

void encode_int8(const float* values, std::size_t count, std::uint64_t first, const CodeRule& rule,
                 WireFloat* scales, std::int8_t* codes) {
  for (std::size_t begin = 0; begin < count; begin += kInt8Block) {
    const std::size_t length = count - begin < kInt8Block ? count - begin : kInt8Block;
    const float scale = block_scale(float_of_bits(max_abs32(values + begin, length)));
    scales[begin / kInt8Block] = scale;
    encode_block(values + begin, length, first + begin, scale, rule, codes + begin);
  }
}

void decode_int8(const std::int8_t* codes, const WireFloat* scales, std::size_t count,
                 float* values) {
  for (std::size_t begin = 0; begin < count; begin += kInt8Block) {
    const std::size_t length = count - begin < kInt8Block ? count - begin : kInt8Block;
    const float scale = scales[begin / kInt8Block];
    for (std::size_t i = begin; i < begin + length; ++i)
      values[i] = static_cast<float>(codes[i]) * scale;
  }
}

void max_codes(const std::int8_t* codes, std::size_t count, std::uint8_t* largest) {
  for (std::size_t begin = 0; begin < count; begin += kInt8Block) {
    const std::size_t length = count - begin < kInt8Block ? count - begin : kInt8Block;
    std::uint8_t found = 0;
    for (std::size_t i = begin; i < begin + length; ++i) {
      const auto magnitude = static_cast<std::uint8_t>(codes[i] < 0 ? -codes[i] : codes[i]);
      found = magnitude > found ? magnitude : found;
    }
    largest[begin / kInt8Block] = found;
  }
}

void square_codes(const std::int8_t* codes, std::size_t count, std::uint32_t* squares) {
  for (std::size_t begin = 0; begin < count; begin += kInt8Block) {
    const std::size_t length = count - begin < kInt8Block ? count - begin : kInt8Block;
    std::int32_t sum = 0;
    for (std::size_t i = begin; i < begin + length; ++i) sum += codes[i] * codes[i];
    squares[begin / kInt8Block] = static_cast<std::uint32_t>(sum);
  }
}

constexpr CodecKernels kCodecKernels = {
    crc32c,    max_abs32,    max_abs64,        max_abs16,       screen_f32,      screen_f64,
    widen_f16, widen_bf16,   narrow_f16,       narrow_bf16,     encode_int8,     decode_int8,
    max_codes, square_codes, add_f32,          add_f32_streams, add_f16_streams, add_bf16_streams,
    add_f64,   add_int8,     add_int8_streams, round_quotients,
};

}  // namespace
}  // namespace veilsum
