// t-of-n sharing of 32-byte secrets (Shamir 1979) over GF(2^128). A secret is two field
// elements, each with a polynomial of its own; a share is both polynomials at one index.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/secret.h"

namespace veilsum {

inline constexpr std::size_t kSharedSecretBytes = 32;

// One share per index. `coefficients` holds the first polynomial's coefficients of degree
// 1 .. threshold-1, 16 bytes big-endian each, then the second polynomial's.
//
// Throws ConfigError for wrong sizes, a threshold below 2 or above the number of indices,
// a zero or repeated index.
std::vector<Secret> deal_shares(const Secret& secret, std::size_t threshold,
                                std::span<const std::uint32_t> indices, const Secret& coefficients);

// Rebuilds secrets that were all shared among the same indices: shares[s][i] is the share
// of secret s at indices[i]. Exactly `threshold` shares of each are needed; fewer give a
// wrong secret, which nothing here can detect.
//
// Throws ConfigError for a zero or repeated index, a wrong count or size.
std::vector<Secret> combine_shares(std::span<const std::uint32_t> indices,
                                   const std::vector<std::vector<const Secret*>>& shares);

}  // namespace veilsum
