#include "aggregate/scale.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace veilsum {
namespace {

// weight * 2^kMaxExponent is finite for every weight. Only f64 tiles whose values are all
// below 2^-898 would ask for more; their terms are rounded to multiples of 2^-960 instead.
constexpr int kMaxExponent = 960;

}  // namespace

int exponent_above(double value) {
  int exponent = 0;
  std::frexp(value, &exponent);
  return exponent;
}

int exponent_above(std::uint64_t integer) { return static_cast<int>(std::bit_width(integer)); }

// Why nothing can overflow. A term is at most w * |x| * 2^s * (1 + 2^-53) + 1/2, or, for int8
// values, whose factor per block is rounded instead, w * |x| * 2^s * (1 + 2^-53) + 127/2; the other
// codecs with such a factor have smaller codes. With
// s <= 62 - e - ceil(log2 count) the first parts add up to at most 2^62 * (1 + 2^-53). There
// are at most kMaxUpdates terms, or, when streaming, as many as the total weight, which is
// below 2^53: the second parts add up to less than 2^53 * 64 = 2^59. Together that is below
// 2^63.
//
// Why a factor is never subnormal. e is at most 31 + 1024 and count at most 2^22, or, when
// streaming, 53 + 1024 and 1: s is at least -1015.
int scale_exponent(int e, std::size_t count) {
  return std::min(62 - e - exponent_above(std::uint64_t{count - 1}), kMaxExponent);
}

double scale_factor(std::int64_t weight, int exponent) {
  return std::ldexp(static_cast<double>(weight), exponent);
}

}  // namespace veilsum
