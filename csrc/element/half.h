// Conversions between float and the two 16-bit formats, by integers. Hardware conversion
// exists on some levels only, and a host program may have told the CPU to flush subnormal
// numbers; these give the same bits regardless. Every device has it, for subnormal numbers too.
#pragma once

#include <cstdint>

#include "element/annotate.h"

namespace veilsum {

VS_FN float float_of_bits(std::uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

VS_FN std::uint32_t bits_of_float(float value) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

// IEEE binary16, exact.
VS_FN float widen_half(std::uint16_t half) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
#else
  const std::uint32_t sign = std::uint32_t{half & 0x8000u} << 16;
  const std::uint32_t magnitude = std::uint32_t{half & 0x7FFFu} << 13;
  const std::uint32_t rebias = (127 - 15) << 23;
  // A subnormal is mantissa * 2^-24: put behind the leading one of 2^-14, which is then
  // taken off again.
  const float subnormal = float_of_bits(magnitude + (113u << 23)) - 0x1p-14f;
  const std::uint32_t normal = magnitude + rebias;
  const std::uint32_t special = magnitude | 0x7F800000u;
  const std::uint32_t finite = magnitude < (1u << 23) ? bits_of_float(subnormal) : normal;
  return float_of_bits(sign | (magnitude < (31u << 23) ? finite : special));
#endif
}

// To nearest, ties to even; infinite beyond 65504, quiet NaN for NaN.
VS_FN std::uint16_t narrow_half(float value) {
  const std::uint32_t bits = bits_of_float(value);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  const std::uint32_t rebias = (127 - 15) << 23;
  // Adding just under half of the last place, and its parity, carries exactly when
  // rounding to nearest even goes up; a carry out of the mantissa is the next exponent.
  const std::uint32_t normal = (magnitude - rebias + 0xFFFu + (magnitude >> 13 & 1)) >> 13;
  // 0.5 has the last place 2^-24, that of subnormal halves: the adder rounds.
  const std::uint32_t subnormal =
      bits_of_float(float_of_bits(magnitude < (113u << 23) ? magnitude : 0) + 0.5f) - (126u << 23);
  const std::uint32_t special = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
  const std::uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
  return static_cast<std::uint16_t>((bits >> 16 & 0x8000u) |
                                    (magnitude < (143u << 23) ? finite : special));
}

// bfloat16, exact.
VS_FN float widen_brain(std::uint16_t brain) { return float_of_bits(std::uint32_t{brain} << 16); }

// To nearest, ties to even; infinite if too large, quiet NaN for NaN.
VS_FN std::uint16_t narrow_brain(float value) {
  const std::uint32_t bits = bits_of_float(value);
  const std::uint32_t rounded = bits + 0x7FFFu + (bits >> 16 & 1);
  const std::uint32_t quiet = bits | 0x400000u;
  return static_cast<std::uint16_t>(((bits & 0x7FFFFFFFu) > 0x7F800000u ? quiet : rounded) >> 16);
}

}  // namespace veilsum
