// Means: exact quotients of a sum in fixed point and a total weight, rounded once to a format.
//
// The first two are for formats of at most 24 bits and their normal numbers, in operations that
// every level has as vectors; the last is for all formats and all numbers, by integers alone.
#pragma once

#include <cstdint>

#include "element/annotate.h"
#include "element/fixed_point.h"

namespace veilsum {

// How exact quotients sum / divisor, divisor = odd_divisor * 2^z, are rounded to a format of
// few bits.
struct QuotientRule {
  double reciprocal;          // of the divisor, rounded once
  std::uint64_t odd_divisor;  // below 2^53
  // To be added to the biased exponent of a quotient: what k * odd_divisor is shifted left by
  // to stand against the sum, k being a number of the format with one more bit.
  std::int64_t shift;
  unsigned cut;            // bits of a double's significand that the format lacks
  std::uint64_t smallest;  // pattern, as a double, of the format's smallest normal number
};

inline constexpr std::uint64_t kMagnitude = 0x7FFFFFFFFFFFFFFFu;
inline constexpr unsigned kMantissaBits = 52;

// The sum as a double, the reciprocal and their product are each off by at most 2^-53 of
// themselves, so the quotient is off by less than 4 of its last places. Unless that reaches the
// point half-way between two numbers of the format, the exact quotient lies on the same side
// of it, and what is returned is exact although nothing was divided.
//
// Everything after the division is arithmetic on patterns without branches or comparisons,
// which is what makes vectors of it: `undecided` gets its sign where the quotient is too close
// to such a point, or is not zero but below the format's smallest normal number.
VS_FN double round_quotient(std::uint64_t sum, const QuotientRule& rule, std::uint64_t& undecided) {
  const double quotient = from_fixed_point(sum) * rule.reciprocal;
  const std::uint64_t bits = bits_of_double(quotient);
  const std::uint64_t half = std::uint64_t{1} << (rule.cut - 1);
  const std::uint64_t kept = ~(2 * half - 1);
  const std::uint64_t beyond_half = (bits & ~kept) - half;
  const std::uint64_t magnitude = bits & kMagnitude;
  const std::uint64_t apart = (beyond_half + 4) | (4 - beyond_half);
  const std::uint64_t tiny = (magnitude - rule.smallest) & (0 - magnitude);
  undecided |= tiny | ~apart;
  return double_of_bits((bits + half) & kept);
}

// The same, exact also at and next to half-way points, which are frequent when few updates
// have equal weights.
//
// With the divisor as odd * 2^z and the half-way point next to the quotient as k * 2^p, the
// quotient is beyond it if sum > k * odd * 2^shift, where shift is p + z plus the exponent of
// the scale. Both sides, made integers, differ by at most 2^-8 of themselves, which is below
// 2^63: k * odd has at most 78 bits, and then k has 25 and they differ by 2^-24. So their
// difference modulo 2^64 has the right sign. An approximate quotient may choose the half-way
// point on the other side of a number of the format; that leads to the same number.
VS_FN double round_quotient_exactly(std::uint64_t sum, const QuotientRule& rule,
                                    std::uint64_t& undecided) {
  const std::uint64_t negative = 0 - (sum >> 63);
  const std::uint64_t steps = (sum ^ negative) - negative;
  const std::uint64_t bits = bits_of_double(from_fixed_point(steps) * rule.reciprocal);
  const std::uint64_t half = std::uint64_t{1} << (rule.cut - 1);
  const std::uint64_t lower = bits & ~(2 * half - 1);
  const std::uint64_t one = std::uint64_t{1} << kMantissaBits;
  const std::uint64_t halfway = ((lower & (one - 1)) | one | half) >> (rule.cut - 1);
  const auto shift = static_cast<std::int64_t>(bits >> kMantissaBits) + rule.shift;
  const std::uint64_t left = static_cast<std::uint64_t>(shift > 0 ? shift : 0);
  const std::uint64_t right = static_cast<std::uint64_t>(shift < 0 ? -shift : 0);
  const auto beyond = static_cast<std::int64_t>((steps << (right & 63)) -
                                                (halfway * rule.odd_divisor << (left & 63)));
  const std::uint64_t odd = lower >> rule.cut & 1;
  const bool up = beyond + static_cast<std::int64_t>(odd) > 0;  // ties to even
  const std::uint64_t rounded = lower + (up ? 2 * half : 0);
  const std::uint64_t tiny = (bits - rule.smallest) & (0 - bits);
  undecided |= tiny | ((63 - right) & (0 - bits));
  return double_of_bits((bits == 0 ? 0 : rounded) | (negative << 63));
}

// A binary floating-point format.
struct FloatFormat {
  int precision;       // bits of the significand
  int least_exponent;  // of the last place of the smallest numbers
};

// Functions, because device code has no use for a constant of a class.
VS_FN constexpr FloatFormat format_f16() { return {11, -24}; }
VS_FN constexpr FloatFormat format_bf16() { return {8, -133}; }
VS_FN constexpr FloatFormat format_f32() { return {24, -149}; }
VS_FN constexpr FloatFormat format_f64() { return {53, -1074}; }

// 2^exponent as a factor: of two powers, because one may be beyond the normal numbers.
VS_FN double times_power(double value, int exponent) {
  const int half = exponent / 2;
  const auto power = [](int e) {
    return double_of_bits(static_cast<std::uint64_t>(e + 1023) << kMantissaBits);
  };
  return value * power(half) * power(exponent - half);
}

VS_FN int top_bit(std::uint64_t value) {
  int found = -1;
  for (; value != 0; value >>= 1) ++found;
  return found;
}

// The largest e with 2^e <= steps / divisor.
VS_FN int quotient_exponent(std::uint64_t steps, std::uint64_t divisor) {
  const int e = top_bit(steps) - top_bit(divisor);
  const bool reached = e >= 0 ? steps >= divisor << e : steps << -e >= divisor;
  return reached ? e : e - 1;
}

// sum * 2^-scale / divisor, sum in two's complement and divisor below 2^53: long division, bit by
// bit, to one bit behind the format's last place and whether anything is left.
VS_FN double round_quotient_slowly(std::uint64_t sum, std::uint64_t divisor, int scale,
                                   const FloatFormat& format) {
  if (sum == 0) return 0;
  const std::uint64_t negative = 0 - (sum >> 63);
  const std::uint64_t steps = (sum ^ negative) - negative;
  const int exponent = quotient_exponent(steps, divisor) - scale;
  const int place = exponent + 1 - format.precision;
  const int last_place = place > format.least_exponent ? place : format.least_exponent;
  // Halves of the last place in a step.
  const int shift = 1 - last_place - scale;
  std::uint64_t halves = 0;
  std::uint64_t rest = 0;
  const int digits = 64 + (shift > 0 ? shift : 0);
  for (int digit = 0; digit < digits; ++digit) {
    rest = rest << 1 | (digit < 64 ? steps >> (63 - digit) & 1 : 0);
    const bool fits = rest >= divisor;
    rest -= fits ? divisor : 0;
    halves = halves << 1 | (fits ? 1 : 0);
  }
  bool left = rest != 0;
  if (shift < 0) {
    left |= shift <= -64 || (halves & ((std::uint64_t{1} << -shift) - 1)) != 0;
    halves = shift <= -64 ? 0 : halves >> -shift;
  }
  const std::uint64_t floor = halves >> 1;
  const bool up = (halves & 1) != 0 && (left || (floor & 1) != 0);
  const double rounded = times_power(static_cast<double>(floor + (up ? 1 : 0)), last_place);
  return negative != 0 ? -rounded : rounded;
}

}  // namespace veilsum
