// One real value to one integer step. All arithmetic is in double and every
// operation rounds once, so host and device agree to the last bit.
#pragma once

#include <cstdint>

#include "element/annotate.h"

namespace veilsum {

// floor without libm: the base level has no rounding instruction. |y| < 2^63.
VS_FN std::int64_t floor_to_step(double y) {
  const std::int64_t truncated = static_cast<std::int64_t>(y);
  return truncated - (static_cast<double>(truncated) > y ? 1 : 0);
}

// Goes up with probability equal to the distance from the lower step, so the
// expected step is y. `u24` is uniform on 0 .. 2^24-1.
VS_FN std::int64_t round_stochastic(double y, std::uint32_t u24) {
  return floor_to_step(y + static_cast<double>(static_cast<std::int32_t>(u24)) * 0x1p-24);
}

// Nearest step, ties to even. |y| < 2^63.
VS_FN std::int64_t round_nearest(double y) {
  // Between 2^52 and 2^53 a double has no fraction, so adding 2^52 with y's sign
  // makes the adder itself round to an integer. Larger values are integers already.
  const double magic = y < 0 ? -0x1p52 : 0x1p52;
  const bool has_fraction = y > -0x1p52 && y < 0x1p52;
  return static_cast<std::int64_t>(has_fraction ? (y + magic) - magic : y);
}

}  // namespace veilsum
