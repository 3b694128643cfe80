// The power of two by which a tile's values are scaled to integers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace veilsum {

inline constexpr std::int64_t kMaxWeight = (std::int64_t{1} << 31) - 1;
// With it a total weight stays below 2^53 and is exact as a double.
inline constexpr std::size_t kMaxUpdates = std::size_t{1} << 22;
inline constexpr std::uint64_t kMaxTotalWeight = (std::uint64_t{1} << 53) - 1;

// The smallest e with |value| < 2^e; 0 for 0.
int exponent_above(double value);

// The smallest e with integer < 2^e.
int exponent_above(std::uint64_t integer);

// s such that the sum of `count` terms round(w * x * 2^s), each with w * |x| < 2^e, stays
// inside 64 bits. With count 1, e may bound the sum of all w * |x| instead.
int scale_exponent(int e, std::size_t count);

// weight * 2^exponent, exactly.
double scale_factor(std::int64_t weight, int exponent);

}  // namespace veilsum
