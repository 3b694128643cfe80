// Rounding uniforms for many coordinates at once: the bits of rounding_words(), made in
// 64-bit lanes whose upper halves are scratch, because a 32-bit product has 64 bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "element/philox.h"
#include "kernels/lanes.inl"

namespace veilsum {
namespace {

constexpr std::size_t kUniformBlock = 64;

// Product of the lanes' lower halves. The plain operator would multiply all 64 bits, which
// takes three times as long where there is an instruction for it at all.
VS_FN WideLanes multiply_low_halves(WideLanes a, std::uint32_t factor) {
  const WideLanes b = WideLanes{} + factor;
#if defined(__AVX512F__)
  return (WideLanes)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (WideLanes)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (WideLanes)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xFFFFFFFFu) * b;
#endif
}

// Lane l of a batch holds quad l/2, plus half a batch if l is odd: then the two vectors of
// pairs that come out below lie in coordinate order.
#if VS_LANES == 16
VS_FN WideLanes batch_quads() { return WideLanes{0, 4, 1, 5, 2, 6, 3, 7}; }
#elif VS_LANES == 8
VS_FN WideLanes batch_quads() { return WideLanes{0, 2, 1, 3}; }
#else
VS_FN WideLanes batch_quads() { return WideLanes{0, 1}; }
#endif

// philox4x32() in every lane: the words of a counter in the lower halves, whose upper halves
// are scratch.
VS_FN void philox_lanes(WideLanes x[4], PhiloxKey key) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const WideLanes even = multiply_low_halves(x[0], kPhiloxEven);
    const WideLanes odd = multiply_low_halves(x[2], kPhiloxOdd);
    x[0] = (odd >> 32) ^ x[1] ^ key.word[0];
    x[1] = odd;
    x[2] = (even >> 32) ^ x[3] ^ key.word[1];
    x[3] = even;
    key = philox_next_key(key);
  }
}

// Uniforms of 4 * kWideLanes coordinates.
VS_FN void write_uniform_batch(PhiloxKey key, std::uint32_t group, std::uint64_t first_quad,
                               std::uint32_t* uniforms) {
  const WideLanes quads = batch_quads() + first_quad;
  WideLanes x[4] = {quads, quads >> 32, WideLanes{} + group, WideLanes{}};
  philox_lanes(x, key);
  const Lanes first_pairs = (Lanes)((x[0] & 0xFFFFFFFFu) | x[1] << 32);
  const Lanes second_pairs = (Lanes)((x[2] & 0xFFFFFFFFu) | x[3] << 32);
  const Lanes low = low_pairs(first_pairs, second_pairs) >> 8;  // uniform24()
  const Lanes high = high_pairs(first_pairs, second_pairs) >> 8;
  __builtin_memcpy(uniforms, &low, sizeof low);
  __builtin_memcpy(uniforms + VS_LANES, &high, sizeof high);
}

// uniforms[i] belongs to coordinate first + i, for kUniformBlock coordinates; `first` is a
// multiple of 4.
void write_uniforms(PhiloxKey key, std::uint32_t group, std::uint64_t first,
                    std::uint32_t* uniforms) {
  for (std::size_t done = 0; done < kUniformBlock; done += 4 * kWideLanes)
    write_uniform_batch(key, group, (first + done) / 4, uniforms + done);
}

}  // namespace
}  // namespace veilsum
