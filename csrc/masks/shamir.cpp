#include "masks/shamir.h"

#include <algorithm>
#include <array>
#include <string>

#include "base/error.h"
#include "element/gf128.h"

namespace veilsum {
namespace {

constexpr std::size_t kElementBytes = 16;
constexpr std::size_t kLimbs = kSharedSecretBytes / kElementBytes;

// The limbs of a secret, or its coefficients. Asking for a secret's bytes is a system call, so it
// is done once for all of them.
const unsigned char* elements(const Secret& secret) {
  return reinterpret_cast<const unsigned char*>(secret.bytes().data());
}

unsigned char* elements(Secret& secret) {
  return reinterpret_cast<unsigned char*>(secret.bytes().data());
}

void require_size(const Secret& secret, std::size_t size, const char* what) {
  if (secret.size() != size)
    throw ConfigError(std::string(what) + " must have " + std::to_string(size) + " bytes, got " +
                      std::to_string(secret.size()));
}

// Index 0 is the secret itself; a repeated index would divide by zero.
void require_distinct(std::span<const std::uint32_t> indices) {
  std::vector<std::uint32_t> sorted(indices.begin(), indices.end());
  std::sort(sorted.begin(), sorted.end());
  if (!sorted.empty() && sorted.front() == 0)
    throw ConfigError("a share index must not be 0: the share at 0 is the secret");
  const auto repeated = std::adjacent_find(sorted.begin(), sorted.end());
  if (repeated != sorted.end())
    throw ConfigError("share index " + std::to_string(*repeated) + " is given twice");
}

void require_dealable(const Secret& secret, std::size_t threshold, std::size_t sites,
                      const Secret& coefficients) {
  require_size(secret, kSharedSecretBytes, "a shared secret");
  if (threshold < 2)
    throw ConfigError("threshold must be at least 2, got " + std::to_string(threshold) +
                      ": with 1 every share is the secret");
  if (threshold > sites)
    throw ConfigError("threshold " + std::to_string(threshold) + " exceeds the " +
                      std::to_string(sites) + " indices: the secret could never be rebuilt");
  if (coefficients.size() != kSharedSecretBytes * (threshold - 1))
    throw ConfigError("threshold " + std::to_string(threshold) + " needs " +
                      std::to_string(kSharedSecretBytes * (threshold - 1)) +
                      " coefficient bytes, got " + std::to_string(coefficients.size()));
}

// Value at `index` of a limb's polynomial (Horner, highest degree first). Coefficients from degree
// one up.
Gf128 evaluate(const unsigned char* limb, const unsigned char* coefficients, std::size_t degree,
               std::uint32_t index) {
  Gf128 value = {0, 0};
  for (std::size_t k = degree; k > 0; --k) {
    const Gf128 coefficient = gf128_load(coefficients + (k - 1) * kElementBytes);
    value = gf128_multiply_by_index(gf128_add(value, coefficient), index);
  }
  return gf128_add(value, gf128_load(limb));
}

// What each share is multiplied with to give the polynomials' value at 0:
// prod_j x_j / (x_i * prod_{j != i} (x_i - x_j)), where minus is exclusive or. Depends on
// public indices only.
std::vector<Gf128> lagrange_at_zero(std::span<const std::uint32_t> indices) {
  Gf128 all = {0, 1};
  for (const std::uint32_t x : indices) all = gf128_multiply_by_index(all, x);
  std::vector<Gf128> weights;
  weights.reserve(indices.size());
  for (const std::uint32_t x : indices) {
    Gf128 denominator = {0, x};
    for (const std::uint32_t other : indices)
      if (other != x) denominator = gf128_multiply_by_index(denominator, x ^ other);
    weights.push_back(gf128_multiply(all, gf128_invert(denominator)));
  }
  return weights;
}

void require_shares(const std::vector<const Secret*>& shares, std::size_t count) {
  if (shares.size() != count)
    throw ConfigError("each secret needs one share per index: " + std::to_string(count) + ", got " +
                      std::to_string(shares.size()));
  for (const Secret* share : shares) require_size(*share, kSharedSecretBytes, "a share");
}

Secret combine_one(const std::vector<Gf128>& weights, const std::vector<const Secret*>& shares) {
  std::array<Gf128, kLimbs> sums = {};
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const unsigned char* share = elements(*shares[i]);
    for (std::size_t limb = 0; limb < kLimbs; ++limb) {
      const Gf128 value = gf128_load(share + limb * kElementBytes);
      sums[limb] = gf128_add(sums[limb], gf128_multiply(value, weights[i]));
    }
  }
  Secret secret(kSharedSecretBytes);
  for (std::size_t limb = 0; limb < kLimbs; ++limb)
    gf128_store(elements(secret) + limb * kElementBytes, sums[limb]);
  return secret;
}

}  // namespace

std::vector<Secret> deal_shares(const Secret& secret, std::size_t threshold,
                                std::span<const std::uint32_t> indices,
                                const Secret& coefficients) {
  require_dealable(secret, threshold, indices.size(), coefficients);
  require_distinct(indices);
  const std::size_t degree = threshold - 1;
  const unsigned char* limbs = elements(secret);
  const unsigned char* higher = elements(coefficients);
  std::vector<Secret> shares;
  shares.reserve(indices.size());
  for (const std::uint32_t index : indices) {
    unsigned char* share = elements(shares.emplace_back(kSharedSecretBytes));
    for (std::size_t limb = 0; limb < kLimbs; ++limb)
      gf128_store(share + limb * kElementBytes,
                  evaluate(limbs + limb * kElementBytes, higher + limb * degree * kElementBytes,
                           degree, index));
  }
  return shares;
}

std::vector<Secret> combine_shares(std::span<const std::uint32_t> indices,
                                   const std::vector<std::vector<const Secret*>>& shares) {
  if (indices.empty()) throw ConfigError("at least one share is needed");
  require_distinct(indices);
  for (const auto& of_one_secret : shares) require_shares(of_one_secret, indices.size());
  const std::vector<Gf128> weights = lagrange_at_zero(indices);
  std::vector<Secret> secrets;
  secrets.reserve(shares.size());
  for (const auto& of_one_secret : shares) secrets.push_back(combine_one(weights, of_one_secret));
  return secrets;
}

}  // namespace veilsum
