// Doubles to integers and back, in operations that every level has as vectors.
#pragma once

#include <cstdint>

#include "element/annotate.h"

namespace veilsum {

VS_FN std::uint64_t bits_of_double(double value) {
  std::uint64_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Nearest integer, ties to even, of |value| < 2^62, in two's complement.
//
// Between 2^k and 2^(k+1) doubles lie 2^(k-52) apart, so adding 1.5 * 2^84 makes the adder
// round to a multiple of 2^32, whose factor then stands in the low bits of the pattern. What
// is left, at most 2^31, is exact and is rounded likewise by adding 1.5 * 2^52. The first
// part is even, so ties of the second are ties of the whole.
//
// The pattern of 1.5 * 2^52 is left in: sums of many take it off at their end, as often as there
// were values. That of 1.5 * 2^84 ends in 32 zeros and is shifted out.
inline constexpr std::uint64_t kFixedPointBias = 0x4338000000000000u;
VS_FN std::uint64_t biased_fixed_point(double value) {
  const double high = value + 0x1.8p84;
  const double low = (value - (high - 0x1.8p84)) + 0x1.8p52;
  return (bits_of_double(high) << 32) + bits_of_double(low);
}

VS_FN std::uint64_t to_fixed_point(double value) {
  return biased_fixed_point(value) - kFixedPointBias;
}

// The same, and 0 for what is beyond: what a block's scale would make of codes that the block does
// not have.
VS_FN std::uint64_t bounded_fixed_point(double value) {
  return value < 0x1p62 && value > -0x1p62 ? to_fixed_point(value) : 0;
}

VS_FN double double_of_bits(std::uint64_t bits) {
  double value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// The nearest double, ties to even, of an integer in two's complement.
//
// The upper half, made positive by adding 2^63, goes into the low bits of 2^84, the lower
// half into those of 2^52. Taking the three constants off the first is exact, so that only the
// last addition rounds.
VS_FN double from_fixed_point(std::uint64_t steps) {
#if defined(__AVX512DQ__)
  return static_cast<double>(static_cast<std::int64_t>(steps));  // one instruction
#else
  const std::uint64_t shifted = steps + (std::uint64_t{1} << 63);
  const double high = double_of_bits(bits_of_double(0x1p84) | shifted >> 32);
  const double low = double_of_bits(bits_of_double(0x1p52) | (shifted & 0xFFFFFFFFu));
  return (high - (0x1p84 + 0x1p63 + 0x1p52)) + low;
#endif
}

}  // namespace veilsum
