// Arithmetic of order statistics: one column's middle, and what its kept values are scaled by
// before they are summed as integers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "element/annotate.h"
#include "element/fixed_point.h"

namespace veilsum {

// Columns whose sums share an exponent: a piece.
inline constexpr std::size_t kOrderPiece = 256;

// Room for sorted rows: as many as it takes to reach a power of two, and two at least.
VS_FN constexpr std::size_t order_room(std::size_t rows) {
  std::size_t room = 2;
  while (room < rows) room *= 2;
  return room;
}

// The exact mean of two values, rounded once. The sum of two floats may overflow one, and doubles
// hold it so exactly that halving and rounding it is rounding the exact mean. Adding zero takes the
// sign off -0.
VS_FN float middle_of(float low, float high) {
  const double sum = static_cast<double>(low) + static_cast<double>(high);
  return static_cast<float>(sum * 0.5) + 0.0f;
}

// Halved first where the sum could overflow, and last where halves could be lost.
VS_FN double middle_of(double low, double high) {
  const bool large = low > 1 || low < -1 || high > 1 || high < -1;
  const double halves = low * 0.5 + high * 0.5;
  const double half = (low + high) * 0.5;
  return (low == high ? low : large ? halves : half) + 0.0;
}

// The smallest e with value < 2^e, for a value that is not negative; subnormal numbers count as
// the smallest normal one.
VS_FN int exponent_of(double value) { return static_cast<int>(bits_of_double(value) >> 52) - 1022; }

// As scale_exponent(): for `count` terms, each below 2^(e - 1) and in a sum that leaves two bits.
VS_FN int sum_exponent(double largest, std::size_t count) {
  int exponent = 61 - exponent_of(largest);
  while (count > 1) {
    --exponent;
    count -= count / 2;
  }
  return exponent < 960 ? exponent : 960;
}

VS_FN double power_of_two(int exponent) {
  return double_of_bits(static_cast<std::uint64_t>(exponent + 1023) << 52);
}

}  // namespace veilsum
