// Packed steps back to values, one CPU level's version. Included by ring_loops.inl.
#pragma once

#include "element/bits.h"
#include "element/fixed_point.h"
#include "element/quantize.h"
#include "kernels/doubles.inl"
#include "kernels/fields.inl"
#include "kernels/ring_kernels.h"

namespace veilsum {
namespace {

// Whole vectors of fields of up to 32 bits; returns how many fields that were.
template <class Word = std::uint32_t>
VS_FN std::size_t unpack_step_vectors(const unsigned char* fields, std::size_t count, unsigned bits,
                                      double* steps) {
  typedef UnpackPlan<Word> Plan;
  typedef std::int32_t Signed __attribute__((vector_size(4 * VS_LANES)));
  Plan plan;
  Plan::fill(plan, bits);
  const int unused = static_cast<int>(32 - bits);
  std::size_t done = 0;
  for (; done + VS_LANES <= count; done += VS_LANES) {
    const Lanes unpacked = Plan::unpacked(plan, fields + done / 8 * bits);
    // To the top and back down, which spreads the sign.
    const Signed lanes = (Signed)(unpacked << unused) >> unused;
    HalfSteps halves[2];
    __builtin_memcpy(halves, &lanes, sizeof lanes);
    const Doubles wide[2] = {to_doubles(halves[0]), to_doubles(halves[1])};
    __builtin_memcpy(steps + done, wide, sizeof wide);
  }
  return done;
}

void unpack_steps(const unsigned char* fields, std::size_t count, unsigned bits, double* steps) {
  std::size_t done = 0;
  if constexpr (FieldUnit<std::uint32_t>::kAvailable)
    if (bits <= 32) done = unpack_step_vectors(fields, count, bits, steps);
  for (; done < count; ++done)
    steps[done] = static_cast<double>(sign_extend(read_field_unmasked(fields, done, bits), bits));
}

// A power of two has an inverse, and what is multiplied by it rounds as what is divided.
VS_FN bool has_inverse(double scale) {
  const std::uint64_t bits = bits_of_double(scale);
  const std::uint64_t exponent = bits >> 52;
  return bits << 12 == 0 && exponent >= 2 && exponent <= 2044;
}

void divide_steps(const double* steps, std::size_t count, double scale, float* values) {
  if (has_inverse(scale)) {
    const double inverse = 1 / scale;
    for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>(steps[i] * inverse);
    return;
  }
  for (std::size_t i = 0; i < count; ++i) values[i] = unscale_step(steps[i], scale);
}

}  // namespace
}  // namespace veilsum
