// One real value to one integer step. All arithmetic is in double and every
// operation rounds once, so host and device agree to the last bit.
#pragma once

#include <cstdint>

#include "element/annotate.h"

namespace veilsum {

// Steps are std::int64_t, or std::int32_t where they are known to fit: vector units below
// AVX-512 convert to 32 bits only.

// floor without libm: the base level has no rounding instruction. The result must fit.
template <class Step = std::int64_t>
VS_FN Step floor_to_step(double y) {
  if constexpr (sizeof(Step) == 4) {
    // In doubles to the end, of which compilers make vectors.
    const double nearest = (y + 0x1.8p52) - 0x1.8p52;
    return static_cast<Step>(nearest - (nearest > y ? 1.0 : 0.0));
  }
  const Step truncated = static_cast<Step>(y);
  return truncated - (static_cast<double>(truncated) > y ? 1 : 0);
}

// False for NaN too.
VS_FN bool is_finite_value(double value) { return __builtin_fabs(value) <= 0x1.fffffffffffffp1023; }

// An infinity is, a NaN is not.
VS_FN bool is_beyond(double value, double limit) { return __builtin_fabs(value) > limit; }

// A NaN stays one.
VS_FN double clamp_to(double value, double limit) {
  const double below = value > limit ? limit : value;
  return below < -limit ? -limit : below;
}

// What is rounded: 0 for a value that is not finite, because converting a NaN to an integer is
// undefined; its step is discarded anyway.
VS_FN double clamped_steps(double value, double limit, double gain) {
  return is_finite_value(value) ? clamp_to(value, limit) * gain : 0;
}

// Goes up with probability equal to the distance from the lower step, so the
// expected step is y. `u24` is uniform on 0 .. 2^24-1.
template <class Step = std::int64_t>
VS_FN Step round_stochastic(double y, std::uint32_t u24) {
  return floor_to_step<Step>(y + static_cast<double>(static_cast<std::int32_t>(u24)) * 0x1p-24);
}

// Nearest step, ties to even. The result must fit.
template <class Step = std::int64_t>
VS_FN Step round_nearest(double y) {
  if constexpr (sizeof(Step) == 4) return static_cast<Step>((y + 0x1.8p52) - 0x1.8p52);
  // Between 2^52 and 2^53 a double has no fraction, so adding 2^52 with y's sign
  // makes the adder itself round to an integer. Larger values are integers already.
  const double magic = y < 0 ? -0x1p52 : 0x1p52;
  const double rounded = (y + magic) - magic;
  const bool has_fraction = y > -0x1p52 && y < 0x1p52;
  return static_cast<Step>(has_fraction ? rounded : y);
}

// The value of a step that was made with so many steps per unit.
VS_FN float unscale_step(double step, double steps_per_unit) {
  return static_cast<float>(step / steps_per_unit);
}

}  // namespace veilsum
