#include "privacy/discrete_gaussian.h"

namespace veilsum {
namespace {

// True with probability exp(-numerator / denominator), for a fraction of at most 1: algorithm 1
// of the paper. The k-th trial succeeds with probability fraction / k, taken as two trials.
bool below_exponential(std::uint64_t numerator, std::uint64_t denominator, NoiseWords& words) {
  std::uint64_t k = 1;
  while (words.below(denominator) < numerator && (k == 1 || words.below(k) == 0)) ++k;
  return k % 2 == 1;
}

// The same for a fraction of 1.
bool below_one_over_e(NoiseWords& words) {
  std::uint64_t k = 2;
  while (words.below(k) == 0) ++k;
  return k % 2 == 1;
}

// |x| of a discrete Laplace sample of scale t, and its sign, which is never minus for zero:
// algorithm 2, with s = 1. Multiples of t beyond 64 bits have probability exp(-2^32).
struct Laplace {
  std::uint64_t magnitude;
  bool negative;
};

Laplace sample_discrete_laplace(std::uint64_t t, NoiseWords& words) {
  for (;;) {
    const std::uint64_t rest = words.below(t);
    if (!below_exponential(rest, t, words)) continue;
    std::uint64_t multiple = 0;
    while (below_one_over_e(words)) ++multiple;
    const std::uint64_t magnitude = rest + t * multiple;
    const bool negative = (words.next() & 1) != 0;
    if (negative && magnitude == 0) continue;
    return {magnitude, negative};
  }
}

// True with probability exp(-(magnitude - sigma)^2 / (2 sigma^2)).
bool accept(std::uint64_t magnitude, std::uint64_t sigma, NoiseWords& words) {
  using Wide = unsigned __int128;
  const std::uint64_t distance = magnitude > sigma ? magnitude - sigma : sigma - magnitude;
  const std::uint64_t denominator = 2 * sigma * sigma;
  const Wide numerator = static_cast<Wide>(distance) * distance;
  Wide whole = numerator / denominator;
  for (; whole != 0; --whole)
    if (!below_one_over_e(words)) return false;
  return below_exponential(static_cast<std::uint64_t>(numerator % denominator), denominator, words);
}

}  // namespace

// Algorithm 3: a Laplace sample of scale sigma is accepted with the probability that makes the
// two densities' ratio. The paper takes floor(sigma) + 1 as the scale; any does.
std::int64_t sample_discrete_gaussian(std::uint64_t sigma, NoiseWords& words) {
  for (;;) {
    const Laplace laplace = sample_discrete_laplace(sigma, words);
    if (!accept(laplace.magnitude, sigma, words)) continue;
    const auto magnitude = static_cast<std::int64_t>(laplace.magnitude);
    return laplace.negative ? -magnitude : magnitude;
  }
}

}  // namespace veilsum
