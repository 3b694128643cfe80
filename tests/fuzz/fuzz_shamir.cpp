// Shares that are put together: any indices and any shares, against Lagrange's formula in a field
// that is written down once more; and shares that were dealt give their secret back.
#include <algorithm>
#include <set>
#include <vector>

#include "base/secret.h"
#include "input.h"
#include "masks/shamir.h"

namespace veilsum::fuzz {
namespace {

__extension__ typedef unsigned __int128 Element;

Element times(Element a, Element b) {
  Element product = 0;
  for (; b != 0; b >>= 1) {
    if ((b & 1) != 0) product ^= a;
    a = a << 1 ^ ((a >> 127) != 0 ? 0x87 : 0);
  }
  return product;
}

Element inverse(Element a) {  // a^(2^128 - 2)
  Element power = 1;
  for (int i = 0; i < 127; ++i) power = times(times(power, power), a);
  return times(power, power);
}

Element load(const std::byte* bytes) {
  Element value = 0;
  for (int i = 0; i < 16; ++i) value = value << 8 | std::to_integer<unsigned>(bytes[i]);
  return value;
}

Element at_zero(const std::vector<std::uint32_t>& indices,
                const std::vector<std::vector<std::byte>>& shares, std::size_t limb) {
  Element sum = 0;
  for (std::size_t i = 0; i < indices.size(); ++i) {
    Element above = 1, below = 1;
    for (const std::uint32_t other : indices) {
      if (other == indices[i]) continue;
      above = times(above, other);
      below = times(below, indices[i] ^ other);
    }
    sum ^= times(load(shares[i].data() + 16 * limb), times(above, inverse(below)));
  }
  return sum;
}

struct Case {
  std::vector<std::uint32_t> indices;
  std::vector<std::vector<std::byte>> shares;  // of one secret; maybe not one per index
};

bool allowed(const Case& one) {
  const std::set<std::uint32_t> different(one.indices.begin(), one.indices.end());
  return !one.indices.empty() && different.size() == one.indices.size() && !different.contains(0) &&
         one.shares.size() == one.indices.size() &&
         std::ranges::all_of(one.shares, [](const auto& share) { return share.size() == 32; });
}

Case read_case(Input& input) {
  Case one;
  const std::size_t count = input.byte() % 7;
  const std::uint8_t mode = input.byte();
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t index = input.below(1u << 16);
    one.indices.push_back(mode & 1 ? index * 65537 : index % 256);
  }
  const std::size_t shares = mode % 16 == 2            ? count + 1
                             : mode % 16 == 4 && count ? count - 1
                                                       : count;
  const std::size_t odd = mode % 16 == 6 ? input.byte() % 7 : 99;
  for (std::size_t i = 0; i < shares; ++i) {
    one.shares.emplace_back(i == odd ? 1 + input.byte() % 64 : 32);
    for (std::byte& byte : one.shares.back()) byte = std::byte{input.byte()};
  }
  return one;
}

void compare_combined(const Case& one) {
  std::vector<Secret> held;
  for (const auto& share : one.shares) held.push_back(Secret::copy_of(share));
  std::vector<const Secret*> places;
  for (const Secret& share : held) places.push_back(&share);
  try {
    const std::vector<Secret> found = combine_shares(one.indices, {places, places});
    if (!allowed(one)) fail("combines what it must refuse");
    for (const Secret& secret : found)
      for (std::size_t limb = 0; limb < 2; ++limb)
        if (load(secret.bytes().data() + 16 * limb) != at_zero(one.indices, one.shares, limb))
          fail("combines to another secret");
  } catch (const ConfigError&) {
    if (allowed(one)) fail("refuses what it must combine");
  }
}

// The case's indices, with its shares' bytes as secret and coefficients.
void compare_dealt(const Case& one) {
  const std::size_t threshold = one.indices.size();
  if (!allowed(one) || threshold < 2) return;
  std::vector<std::byte> higher;
  for (std::size_t i = 1; i < threshold; ++i)
    higher.insert(higher.end(), one.shares[i].begin(), one.shares[i].end());
  const Secret secret = Secret::copy_of(one.shares[0]);
  std::vector<std::uint32_t> indices = one.indices;
  const std::uint32_t more = *std::ranges::max_element(indices) + 1;  // 0 where that wraps
  if (more != 0) indices.push_back(more);
  const auto shares = deal_shares(secret, threshold, indices, Secret::copy_of(higher));
  for (std::size_t left_out = 0; left_out < indices.size(); ++left_out) {
    std::vector<std::uint32_t> chosen;
    std::vector<const Secret*> places;
    for (std::size_t i = 0; i < indices.size() && places.size() < threshold; ++i) {
      if (i == left_out && more != 0) continue;
      chosen.push_back(indices[i]);
      places.push_back(&shares[i]);
    }
    if (!combine_shares(chosen, {places})[0].equals(secret))
      fail("dealt shares give another secret");
  }
}

void run(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  const Case one = read_case(input);
  compare_combined(one);
  compare_dealt(one);
}

}  // namespace
}  // namespace veilsum::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  veilsum::fuzz::run(data, size);
  return 0;
}
