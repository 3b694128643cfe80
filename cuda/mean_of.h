// Exact quotients of sums, rounded once to a tensor's format, as kernels take them.
#pragma once

#include <cstdint>

#include "device.h"
#include "device/mean_launchers.h"
#include "element/fixed_point.h"
#include "element/quotient.h"

namespace veilsum {
namespace {

VS_FN FloatFormat format_of(MeanFormat format) {
  return format == MeanFormat::f32    ? format_f32()
         : format == MeanFormat::f16  ? format_f16()
         : format == MeanFormat::bf16 ? format_bf16()
                                      : format_f64();
}

// Divisors of a window: what is the same in all its tiles.
struct Divisors {
  std::uint64_t total_weight;
  std::uint64_t odd_divisor;
  int twos;  // total_weight = odd_divisor * 2^twos
};

VS_FN Divisors divisors_of(std::uint64_t total_weight) {
  const int twos = top_bit(total_weight & (0 - total_weight));
  return {total_weight, total_weight >> twos, twos};
}

VS_FN QuotientRule rule_for(const Divisors& all, const TileDivisor& own,
                            const FloatFormat& format) {
  const int cut = 53 - format.precision;
  const int least = format.least_exponent + format.precision - 1;
  return {own.reciprocal, all.odd_divisor, own.scale + all.twos - 1023 - 52 + cut - 1,
          static_cast<unsigned>(cut), static_cast<std::uint64_t>(least + 1023) << kMantissaBits};
}

// Nearly every mean is decided by a product and a rounding; few by 64-bit integers, and only those
// below the format's normal numbers, or of doubles, by long division.
__device__ double mean_of(std::uint64_t sum, const Divisors& all, const TileDivisor& own,
                          MeanFormat wanted) {
  const FloatFormat format = format_of(wanted);
  if (wanted != MeanFormat::f64) {
    const QuotientRule rule = rule_for(all, own, format);
    std::uint64_t undecided = 0;
    const double quick = round_quotient(sum, rule, undecided);
    if (undecided >> 63 == 0) return quick;
    undecided = 0;
    const double exact = round_quotient_exactly(sum, rule, undecided);
    if (undecided >> 63 == 0) return exact;
  }
  return round_quotient_slowly(sum, all.total_weight, own.scale, format);
}

}  // namespace
}  // namespace veilsum
