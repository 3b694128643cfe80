// Philox4x32-10 (Salmon et al. 2011): counter-based uniforms for stochastic rounding.
//
// Fast and well distributed, but not a cipher: it decides how a value is rounded,
// never what hides it. Masks come from chacha20.h.
#pragma once

#include <cstdint>

#include "element/annotate.h"

namespace veilsum {

inline constexpr int kPhiloxRounds = 10;
inline constexpr std::uint32_t kPhiloxEven = 0xD2511F53u;
inline constexpr std::uint32_t kPhiloxOdd = 0xCD9E8D57u;

struct PhiloxKey {
  std::uint32_t word[2];
};

struct PhiloxBlock {
  std::uint32_t word[4];
};

VS_FN PhiloxBlock philox_round(PhiloxBlock x, PhiloxKey key) {
  const std::uint64_t even = std::uint64_t{kPhiloxEven} * x.word[0];
  const std::uint64_t odd = std::uint64_t{kPhiloxOdd} * x.word[2];
  return {{static_cast<std::uint32_t>(odd >> 32) ^ x.word[1] ^ key.word[0],
           static_cast<std::uint32_t>(odd),
           static_cast<std::uint32_t>(even >> 32) ^ x.word[3] ^ key.word[1],
           static_cast<std::uint32_t>(even)}};
}

VS_FN PhiloxKey philox_next_key(PhiloxKey key) {
  return {{key.word[0] + 0x9E3779B9u, key.word[1] + 0xBB67AE85u}};
}

VS_FN PhiloxBlock philox4x32(PhiloxBlock counter, PhiloxKey key) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    counter = philox_round(counter, key);
    key = philox_next_key(key);
  }
  return counter;
}

// Counter of coordinates 4*quad .. 4*quad+3 of a group.
VS_FN PhiloxBlock rounding_counter(std::uint64_t quad, std::uint32_t group) {
  return {{static_cast<std::uint32_t>(quad), static_cast<std::uint32_t>(quad >> 32), group, 0}};
}

// The four words that belong to these coordinates. They are a function of the coordinate
// alone, so chunking and threads cannot change a rounding decision.
VS_FN PhiloxBlock rounding_words(PhiloxKey key, std::uint64_t quad, std::uint32_t group) {
  return philox4x32(rounding_counter(quad, group), key);
}

// The 24-bit uniform a rounding word stands for.
VS_FN std::uint32_t uniform24(std::uint32_t word) { return word >> 8; }

}  // namespace veilsum
