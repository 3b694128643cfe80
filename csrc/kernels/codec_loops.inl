// The loops over encoded values. Included once per CPU level; everything has internal
// linkage and no inline function of the standard library is called (see ring_loops.inl).
#pragma once

#include "element/half.h"
#include "kernels/checksum.inl"
#include "kernels/codec_kernels.h"
#include "kernels/screen.inl"
#include "kernels/sum_loops.inl"

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
    crc32c,       max_abs32,        max_abs64,       max_abs16,       screen_f32,       screen_f64,
    widen_f16,    widen_bf16,       narrow_f16,      narrow_bf16,     decode_int8,      max_codes,
    square_codes, add_f32,          add_f32_streams, add_f16_streams, add_bf16_streams, add_f64,
    add_int8,     add_int8_streams, round_quotients,
};

}  // namespace
}  // namespace veilsum
