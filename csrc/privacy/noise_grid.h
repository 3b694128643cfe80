// The public grid on which a private sum is formed, and how much noise it gets.
#pragma once

#include <cstdint>

namespace veilsum {

// What a private mean promises; all of it is public.
struct PrivacySettings {
  double clip;              // largest L2 norm of one site's update, model units; 1e-30 .. 1e30
  double noise_multiplier;  // sigma / sensitivity; 2^-9 .. 2^9
};

// A unit is 2^-exponent in model units. A function of public numbers alone: a scale that followed
// the updates would tell about them.
struct NoiseGrid {
  int exponent;
  std::uint64_t sensitivity;  // most that one site can move the sum, L2, in units
  std::uint64_t sigma;        // of the noise, in units; sigma / sensitivity >= noise_multiplier
};

// Throws ConfigError if a setting is out of range.
NoiseGrid noise_grid(const PrivacySettings& settings, std::uint64_t coordinates);

// An upper bound of the L2 norm whose square was summed up as `squares`; infinite if that is.
double norm_above(double squares);

}  // namespace veilsum
