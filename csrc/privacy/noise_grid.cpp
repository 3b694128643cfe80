#include "privacy/noise_grid.h"

#include <cmath>
#include <string>

#include "aggregate/scale.h"
#include "base/error.h"
#include "privacy/discrete_gaussian.h"

namespace veilsum {
namespace {

// Sigma is between 2^29 and 2^30 units (or a little less, for models of more than 2^30 values):
// so fine that rounding to units neither shows in the mean nor adds to the sensitivity.
constexpr std::uint64_t kLargestSigma = std::uint64_t{1} << 30;
static_assert(kLargestSigma < kMaxSigma);

constexpr double kMinClip = 1e-30;
constexpr double kMaxClip = 1e30;
constexpr double kMaxMultiplier = 512;

// Far above what double precision can lose in a norm, in a gain and in a product, see
// sensitivity_at, and far below what anyone would notice in sigma.
constexpr double kSlack = 0x1p-20;

// Most that one update can move the sum. Its clipped norm is at most `clip`; rounding to units
// moves each coordinate by at most 1/2, so all together by sqrt(coordinates) / 2.
std::uint64_t sensitivity_at(int exponent, double clip, std::uint64_t coordinates) {
  const double clipped = std::ceil(std::ldexp(clip, exponent) * (1 + kSlack));
  const double rounding = std::ceil(std::sqrt(static_cast<double>(coordinates)) / 2);
  return static_cast<std::uint64_t>(clipped + rounding) + 1;
}

std::uint64_t sigma_for(std::uint64_t sensitivity, double noise_multiplier) {
  return static_cast<std::uint64_t>(
             std::ceil(static_cast<double>(sensitivity) * noise_multiplier)) +
         1;
}

void require(bool allowed, const char* what, const char* range, double value) {
  if (!allowed)
    throw ConfigError(std::string(what) + " must be " + range + ", got " + std::to_string(value));
}

}  // namespace

NoiseGrid noise_grid(const PrivacySettings& settings, std::uint64_t coordinates) {
  const double multiplier = settings.noise_multiplier;
  require(settings.clip >= kMinClip && settings.clip <= kMaxClip, "clip", "1e-30 to 1e30",
          settings.clip);
  require(multiplier >= 1 / kMaxMultiplier && multiplier <= kMaxMultiplier, "noise_multiplier",
          "1/512 to 512", multiplier);
  // With sigma a unit above 2^30 at first: the loop takes a step or two, and ends because
  // sqrt(2^40) / 2 * 512 < 2^30.
  int exponent = 31 - exponent_above(settings.clip * multiplier);
  for (;; --exponent) {
    const std::uint64_t sensitivity = sensitivity_at(exponent, settings.clip, coordinates);
    const std::uint64_t sigma = sigma_for(sensitivity, multiplier);
    if (sigma <= kLargestSigma) return {exponent, sensitivity, sigma};
  }
}

// The sum of squares is off by at most 2^-24 of itself: each of at most 2^40 squares rounds once,
// and goes through at most 4096 additions in its tile and one for each of 2^28 tiles.
double norm_above(double squares) { return std::sqrt(squares) * (1 + 0x1p-22); }

}  // namespace veilsum
