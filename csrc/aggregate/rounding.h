// Exact fractions to the nearest number of a format.
#pragma once

#include <cstdint>
#include <span>

#include "codec/layout.h"

namespace veilsum {

// A mean of a tile is sum * 2^-scale_exponent / total_weight.
struct MeanDivisor {
  int scale_exponent;          // -1100 .. 1100
  std::uint64_t total_weight;  // 1 .. 2^53
};

// The mean rounded once, ties to even, to what a floating-point dtype holds, as a double
// that holds it exactly. Beyond the dtype's range it is infinite.
double round_mean(std::int64_t sum, const MeanDivisor& divisor, DType dtype);

// Rounds every mean to `dtype` and writes its bytes to `out` (bf16 as bit patterns).
void write_means(std::span<const std::int64_t> sums, const MeanDivisor& divisor, DType dtype,
                 std::byte* out);

// values[i] = sums[i] * factor in double.
void scale_sums(std::span<const std::int64_t> sums, double factor, std::span<double> values);

// sum / total_weight to the nearest integer, ties to even.
__int128 round_integer_mean(__int128 sum, std::uint64_t total_weight);

}  // namespace veilsum
