// The two 8-bit floats of the Open Compute Project (OCP 8-bit Floating Point Specification,
// 2023), by integers, as in half.h.
#pragma once

#include <cstdint>

#include "element/annotate.h"
#include "element/half.h"

namespace veilsum {

// Four bits of exponent, three of mantissa. No infinity: the largest pattern is the only NaN.
struct E4M3 {
  static constexpr unsigned kMantissa = 3;
  static constexpr unsigned kBias = 7;
  static constexpr std::uint8_t kLargest = 0x7E;  // 448
};

// Five bits of exponent, two of mantissa: the upper half of an f16.
struct E5M2 {
  static constexpr unsigned kMantissa = 2;
  static constexpr unsigned kBias = 15;
  static constexpr std::uint8_t kLargest = 0x7B;  // 57344
};

// Pattern of the smallest normal number, as a float.
template <class Format>
VS_FN std::uint32_t smallest_normal_fp8() {
  return (128 - Format::kBias) << 23;
}

// Exact, of patterns up to kLargest and their opposites.
template <class Format>
VS_FN float widen_fp8(std::uint8_t pattern) {
  const std::uint32_t sign = std::uint32_t{pattern & 0x80u} << 24;
  const std::uint32_t magnitude = std::uint32_t{pattern & 0x7Fu} << (23 - Format::kMantissa);
  const std::uint32_t least = smallest_normal_fp8<Format>();
  // A subnormal is put behind the leading one of the smallest normal number, which is then
  // taken off again.
  const float subnormal = float_of_bits(magnitude + least) - float_of_bits(least);
  const std::uint32_t normal = magnitude + ((127 - Format::kBias) << 23);
  return float_of_bits(sign | (magnitude < (1u << 23) ? bits_of_float(subnormal) : normal));
}

// To nearest, ties to even; of what would be beyond `most`, `most` with the sign.
template <class Format>
VS_FN std::uint8_t narrow_fp8(float value, std::uint32_t most) {
  constexpr unsigned kDropped = 23 - Format::kMantissa;
  const std::uint32_t bits = bits_of_float(value);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  const std::uint32_t rebias = (127 - Format::kBias) << 23;
  // As in narrow_half(): just under half of the last place and its parity.
  const std::uint32_t half = (1u << (kDropped - 1)) - 1;
  const std::uint32_t normal =
      (magnitude - rebias + half + (magnitude >> kDropped & 1)) >> kDropped;
  // A float this large has the last place of the format's subnormal numbers: the adder rounds.
  const std::uint32_t large = (128 - Format::kBias + kDropped) << 23;
  const std::uint32_t least = smallest_normal_fp8<Format>();
  const std::uint32_t subnormal =
      bits_of_float(float_of_bits(magnitude < least ? magnitude : 0) + float_of_bits(large)) -
      large;
  const std::uint32_t finite = magnitude < least ? subnormal : normal;
  return static_cast<std::uint8_t>((bits >> 24 & 0x80u) | (finite < most ? finite : most));
}

}  // namespace veilsum
