// Exact samples of the discrete Gaussian (Canonne, Kamath and Steinke 2020, arXiv 2004.00010).
//
// The integer x has probability proportional to exp(-x^2 / (2 sigma^2)). Only integers are
// computed with, so there is no rounding whose traces could give away what noise was added
// to (Mironov 2012). How long a sample takes does depend on it.
#pragma once

#include <cstdint>

#include "privacy/noise_words.h"

namespace veilsum {

// Sigma is an integer. 2 sigma^2 and everything below a probability's denominator then stays in
// 64 bits.
inline constexpr std::uint64_t kMaxSigma = std::uint64_t{1} << 31;

// `sigma` is 1 .. kMaxSigma - 1.
std::int64_t sample_discrete_gaussian(std::uint64_t sigma, NoiseWords& words);

}  // namespace veilsum
