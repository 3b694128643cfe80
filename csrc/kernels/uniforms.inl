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
  // The masked form: GCC 12 warns about its own header at the plain one.
  return (WideLanes)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, (__m512i)b);
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

// The key words of all rounds.
struct UniformKeys {
  PhiloxKey round[kPhiloxRounds];
};

VS_FN UniformKeys uniform_keys(PhiloxKey key) {
  UniformKeys keys;
  for (PhiloxKey& round : keys.round) {
    round = key;
    key = philox_next_key(key);
  }
  return keys;
}

// Coordinates whose uniforms are made together.
constexpr std::size_t kUniformBatch = 2 * VS_LANES;

struct UniformBatch {
  Lanes lanes[2];
};

// kBatches of them, one after the other from coordinate 4 * first_quad on. The ten rounds of a
// batch wait for each other; those of several batches side by side do not.
template <std::size_t kBatches>
VS_FN void make_uniform_batches(const UniformKeys& keys, std::uint32_t group,
                                std::uint64_t first_quad, UniformBatch* batches) {
  WideLanes x[kBatches][4];
  for (std::size_t b = 0; b < kBatches; ++b) {
    const WideLanes quads = batch_quads() + (first_quad + b * kUniformBatch / 4);
    x[b][0] = quads;
    x[b][1] = quads >> 32;
    x[b][2] = WideLanes{} + group;
    x[b][3] = WideLanes{};
  }
  for (const PhiloxKey& key : keys.round)
    for (std::size_t b = 0; b < kBatches; ++b) {
      const WideLanes even = multiply_low_halves(x[b][0], kPhiloxEven);
      const WideLanes odd = multiply_low_halves(x[b][2], kPhiloxOdd);
      x[b][0] = (odd >> 32) ^ x[b][1] ^ key.word[0];
      x[b][1] = odd;
      x[b][2] = (even >> 32) ^ x[b][3] ^ key.word[1];
      x[b][3] = even;
    }
  for (std::size_t b = 0; b < kBatches; ++b) {
    const Lanes first_pairs = (Lanes)((x[b][0] & 0xFFFFFFFFu) | x[b][1] << 32);
    const Lanes second_pairs = (Lanes)((x[b][2] & 0xFFFFFFFFu) | x[b][3] << 32);
    batches[b] = {{low_pairs(first_pairs, second_pairs) >> 8,  // uniform24()
                   high_pairs(first_pairs, second_pairs) >> 8}};
  }
}

// uniforms[i] belongs to coordinate first + i, for kUniformBlock coordinates; `first` is a
// multiple of 4.
void write_uniforms(PhiloxKey key, std::uint32_t group, std::uint64_t first,
                    std::uint32_t* uniforms) {
  const UniformKeys keys = uniform_keys(key);
  for (std::size_t done = 0; done < kUniformBlock; done += 2 * kUniformBatch) {
    UniformBatch batches[2];
    make_uniform_batches<2>(keys, group, (first + done) / 4, batches);
    __builtin_memcpy(uniforms + done, batches, sizeof batches);
  }
}

}  // namespace
}  // namespace veilsum
