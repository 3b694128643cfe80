// The loops of the randomized Hadamard transform, as one CPU level provides them. Nothing is
// checked here: arguments were checked one layer up. Every level gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "element/philox.h"

namespace veilsum {

struct RotationKernels {
  // values[i] = values[i] * gain, a double product rounded once to float, at most +-bound.
  // Returns how many were beyond that. Values are finite.
  std::size_t (*scale_f32)(float* values, std::size_t count, double gain, double bound);

  // One block of 64, 256, 1024 or 4096 values, in place: times 1/sqrt(block), then butterflies
  // (a, b) -> (a + b, a - b) of strides 1, 2, 4, .. block/2, every operation rounded once. An
  // orthonormal map that is its own inverse.
  void (*hadamard_f32)(float* values, std::size_t block);
  void (*hadamard_f64)(double* values, std::size_t block);

  // Flips the signs of coordinates first .. first + count - 1 that the key says; `first` is a
  // multiple of 64 and `count` one of 64. A coordinate of 0 becomes -0.
  void (*flip_signs_f32)(float* values, std::size_t count, std::uint64_t first, std::uint32_t group,
                         PhiloxKey key);
  void (*flip_signs_f64)(double* values, std::size_t count, std::uint64_t first,
                         std::uint32_t group, PhiloxKey key);
};

}  // namespace veilsum
