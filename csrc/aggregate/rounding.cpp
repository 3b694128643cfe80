#include "aggregate/rounding.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "base/float_environment.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

using Wide = unsigned __int128;

// A binary floating-point format.
struct Format {
  int precision;       // bits of the significand
  int least_exponent;  // of the last place of the smallest numbers
  double overflow;     // magnitudes from here on round to infinity
};

Format format_of(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return {11, -24, 65520};
    case DType::bf16:
      return {8, -133, 0x1.ffp127};
    case DType::f32:
      return {24, -149, 0x1.ffffffp127};
    default:
      return {53, -1074, std::numeric_limits<double>::infinity()};
  }
}

// As std::ldexp, without a call: one multiplication by a power of two rounds the same.
double scaled(double value, int exponent) {
  constexpr int kBias = 1023;
  if (exponent <= -kBias || exponent > kBias) return std::ldexp(value, exponent);
  return value * std::bit_cast<double>(static_cast<std::uint64_t>(exponent + kBias) << 52);
}

// As std::ilogb, for a normal positive number.
int exponent_of(double value) {
  return static_cast<int>(std::bit_cast<std::uint64_t>(value) >> 52) - 1023;
}

Wide round_half_even(Wide floor, int cut) {
  const Wide kept = floor >> cut;
  const Wide rest = floor & ((Wide{1} << cut) - 1);
  const Wide half = Wide{1} << (cut - 1);
  return kept + (rest > half || (rest == half && (kept & 1)));
}

// For any format: long division with more bits than any format has, the remainder kept as
// one sticky bit.
double round_by_division(std::uint64_t magnitude, const MeanDivisor& divisor,
                         const Format& format) {
  // The dividend fills 126 bits, so the quotient has at least 126 - 53 = 73 bits, of which
  // a format keeps at most 53: there is always a bit to cut, even behind the sticky one.
  const int shift = std::countl_zero(magnitude) + 62;
  const Wide dividend = Wide{magnitude} << shift;
  const Wide floor = dividend / divisor.total_weight;
  const Wide sticky = floor << 1 | (floor * divisor.total_weight != dividend);
  const int exponent = -divisor.scale_exponent - shift - 1;  // of the sticky bit
  const int bits = 128 - std::countl_zero(static_cast<std::uint64_t>(sticky >> 64));
  const int last_place = std::max(exponent + bits - format.precision, format.least_exponent);
  const int cut = last_place - exponent;
  if (cut > bits) return 0;  // below half of the smallest number
  return std::ldexp(static_cast<double>(round_half_even(sticky, cut)), last_place);
}

// Whether sum * 2^-s / W is above (1), at (0) or below (-1) halves * 2^(place - 1), by
// integers. The caller knows that both sides agree to 50 bits; with halves < 2^26 and
// W <= 2^53 neither side has more than 80.
int compare_with_half_way(std::uint64_t magnitude, const MeanDivisor& divisor, std::uint64_t halves,
                          int place) {
  Wide mean = magnitude;
  Wide half_way = Wide{halves} * divisor.total_weight;
  const int shift = 1 - place - divisor.scale_exponent;
  (shift >= 0 ? mean : half_way) <<= std::abs(shift);
  return mean > half_way ? 1 : mean < half_way ? -1 : 0;
}

// For formats of at most 24 bits: a double next to the mean decides, unless a point half-way
// between two numbers of the format is so close that only integers can tell.
//
// Conversion of the sum and division each err by at most 2^-53 of the result, scaling by a
// power of two is exact, so the mean is quotient * (1 +- 2^-51.9). In units of the format's
// last place that is below 2^24, and how far it is from the half-way point is exact.
double round_narrow(std::uint64_t magnitude, const MeanDivisor& divisor, const Format& format) {
  const double quotient =
      scaled(static_cast<double>(magnitude) / static_cast<double>(divisor.total_weight),
             -divisor.scale_exponent);
  if (quotient < 0x1p-1000) return 0;
  const int place = std::max(exponent_of(quotient) + 1 - format.precision, format.least_exponent);
  const double units = scaled(quotient, -place);
  const double floor = std::floor(units);
  const double beyond_half = units - floor - 0.5;
  bool up = beyond_half > 0;
  if (std::fabs(beyond_half) <= units * 0x1p-51) {
    const auto steps = static_cast<std::uint64_t>(floor);
    const int side = compare_with_half_way(magnitude, divisor, 2 * steps + 1, place);
    up = side > 0 || (side == 0 && steps % 2 == 1);
  }
  return scaled(floor + up, place);
}

// One division of exact operands rounds once by itself.
double round_wide(std::uint64_t magnitude, const MeanDivisor& divisor, const Format& format) {
  const double quotient =
      std::ldexp(static_cast<double>(magnitude) / static_cast<double>(divisor.total_weight),
                 -divisor.scale_exponent);
  const bool exact_operands = magnitude <= std::uint64_t{1} << 53;
  return exact_operands && quotient >= 0x1p-1000 ? quotient
                                                 : round_by_division(magnitude, divisor, format);
}

}  // namespace

double round_mean(std::int64_t sum, const MeanDivisor& divisor, DType dtype) {
  if (sum == 0) return 0;
  const auto bits = static_cast<std::uint64_t>(sum);
  const std::uint64_t magnitude = sum < 0 ? 0 - bits : bits;
  const Format format = format_of(dtype);
  const double rounded = dtype == DType::f64 ? round_wide(magnitude, divisor, format)
                                             : round_narrow(magnitude, divisor, format);
  const double bounded =
      rounded < format.overflow ? rounded : std::numeric_limits<double>::infinity();
  return sum < 0 ? -bounded : bounded;
}

namespace {

// So many are rounded one by one if one of them is subnormal.
constexpr std::size_t kMeansAtOnce = 256;

// Means of a dtype of at most 24 bits, each a float that holds it exactly.
void round_means(std::span<const std::int64_t> sums, const MeanDivisor& divisor, DType dtype,
                 const QuotientRule& rule, WireFloat* means) {
  const auto* words = reinterpret_cast<const std::uint64_t*>(sums.data());
  if (kernels().codec.round_quotients(words, sums.size(), rule, means)) return;
  for (std::size_t i = 0; i < sums.size(); ++i)
    means[i] = static_cast<float>(round_mean(sums[i], divisor, dtype));
}

QuotientRule quotient_rule(const MeanDivisor& divisor, DType dtype) {
  const Format format = format_of(dtype);
  const int cut = 53 - format.precision;
  const int twos = std::countr_zero(divisor.total_weight);
  // A half-way point is k * 2^(exponent - 52 + cut - 1), its exponent biased by 1023.
  const int shift = divisor.scale_exponent + twos - 1023 - 52 + cut - 1;
  return {
      std::ldexp(1.0 / static_cast<double>(divisor.total_weight), -divisor.scale_exponent),
      divisor.total_weight >> twos, shift, static_cast<unsigned>(cut),
      std::bit_cast<std::uint64_t>(std::ldexp(1.0, format.least_exponent + format.precision - 1))};
}

void write_narrow(std::span<const std::int64_t> sums, const MeanDivisor& divisor, DType dtype,
                  std::byte* out) {
  const QuotientRule rule = quotient_rule(divisor, dtype);
  std::array<float, kMeansAtOnce> room;
  for (std::size_t begin = 0; begin < sums.size(); begin += room.size()) {
    const auto some = sums.subspan(begin, std::min(room.size(), sums.size() - begin));
    std::byte* place = out + begin * dtype_size(dtype);
    if (dtype == DType::f32) {
      round_means(some, divisor, dtype, rule, reinterpret_cast<WireFloat*>(place));
      continue;
    }
    round_means(some, divisor, dtype, rule, room.data());
    const CodecKernels& codec = kernels().codec;
    const auto narrow = dtype == DType::f16 ? codec.narrow_f16 : codec.narrow_bf16;
    narrow(room.data(), some.size(), reinterpret_cast<WireHalf*>(place));  // exact
  }
}

}  // namespace

void write_means(std::span<const std::int64_t> sums, const MeanDivisor& divisor, DType dtype,
                 std::byte* out) {
  if (dtype != DType::f64) return write_narrow(sums, divisor, dtype, out);
  for (std::size_t i = 0; i < sums.size(); ++i) {
    const double mean = round_mean(sums[i], divisor, dtype);
    std::memcpy(out + i * sizeof mean, &mean, sizeof mean);
  }
}

void scale_sums(std::span<const std::int64_t> sums, double factor, std::span<double> values) {
  const FloatEnvironment exact;
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(sums[i]) * factor;
}

__int128 round_integer_mean(__int128 sum, std::uint64_t total_weight) {
  const Wide magnitude = sum < 0 ? 0 - static_cast<Wide>(sum) : static_cast<Wide>(sum);
  const Wide floor = magnitude / total_weight;
  const Wide rest = magnitude % total_weight;
  const bool up = 2 * rest > total_weight || (2 * rest == total_weight && floor % 2 == 1);
  const auto rounded = static_cast<__int128>(floor + up);
  return sum < 0 ? -rounded : rounded;
}

}  // namespace veilsum
