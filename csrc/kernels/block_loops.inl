// The loops over codes that share scales in blocks. Included once per CPU level; everything has
// internal linkage and no inline function of the standard library is called (see
// ring_loops.inl).
#pragma once

#include "element/fixed_point.h"
#include "element/fp8.h"
#include "element/half.h"
#include "element/quantize.h"
#include "kernels/block_kernels.h"
#include "kernels/doubles.inl"
#include "kernels/nibbles.inl"
#include "kernels/quotients.inl"
#include "kernels/ranks.inl"
#include "kernels/signs.inl"
#include "kernels/uniforms.inl"

namespace veilsum {
namespace {

// --- scales ------------------------------------------------------------------------

void max_blocks(const float* values, const BlockRange& range, float* largest) {
  for_each_block(range, [&](std::size_t block, std::size_t begin, std::size_t length) {
    std::int32_t found = 0;  // signed, because every level can compare signed words
    for (std::size_t i = begin; i < begin + length; ++i) {
      const auto magnitude = static_cast<std::int32_t>(bits_of_float(values[i]) & 0x7FFFFFFFu);
      found = magnitude > found ? magnitude : found;
    }
    largest[block] = float_of_bits(static_cast<std::uint32_t>(found));
  });
}

constexpr std::size_t kPartialSums = 16;

VS_FN double sum_magnitudes(const float* values, std::size_t count) {
  Doubles vectors[kPartialSums / kWideLanes] = {};
  std::size_t begin = 0;
  for (; begin + kPartialSums <= count; begin += kPartialSums)
    for (std::size_t v = 0; v < kPartialSums / kWideLanes; ++v) {
      HalfSteps lanes;
      __builtin_memcpy(&lanes, values + begin + v * kWideLanes, sizeof lanes);
      vectors[v] += to_doubles((HalfFloats)(lanes & 0x7FFFFFFF));
    }
  double sums[kPartialSums];
  __builtin_memcpy(sums, vectors, sizeof sums);
  for (std::size_t i = 0; begin + i < count; ++i)
    sums[i] += float_of_bits(bits_of_float(values[begin + i]) & 0x7FFFFFFFu);
  for (std::size_t apart = kPartialSums / 2; apart != 0; apart /= 2)
    for (std::size_t i = 0; i < apart; ++i) sums[i] += sums[i + apart];
  return sums[0];
}

void sum_blocks(const float* values, const BlockRange& range, double* sums) {
  for_each_block(range, [&](std::size_t block, std::size_t begin, std::size_t length) {
    sums[block] = sum_magnitudes(values + begin, length);
  });
}

// --- steps: int8 and int4 ------------------------------------------------------------

// |y| may pass the limit a little, because the scale was rounded, and by one because of the
// dither.
VS_FN std::int8_t within(std::int32_t step, int limit) {
  return static_cast<std::int8_t>(step > limit ? limit : step < -limit ? -limit : step);
}

// 0 if it is no normal number, which is not precise enough.
VS_FN float reciprocal_of(float scale) {
  const float reciprocal = 1 / scale;
  return reciprocal >= 0x1p-126f ? reciprocal : 0;
}

// At most kQuotientRun values by the reciprocal of the scale if that decides, else by what defines
// their codes.
template <bool kStochastic>
VS_FN void divide_run(const float* values, std::size_t count, float scale, float reciprocal,
                      int limit, const std::uint32_t* uniforms, std::int8_t* codes) {
  std::int32_t steps[kQuotientRun];
  if (count == kQuotientRun && reciprocal != 0 &&
      divide_by_reciprocal<kStochastic>(values, reciprocal, uniforms, steps)) {
    for (std::size_t i = 0; i < kQuotientRun; ++i) codes[i] = within(steps[i], limit);
    return;
  }
  const double divisor = scale;
  for (std::size_t i = 0; i < count; ++i)
    if constexpr (kStochastic)
      codes[i] = within(round_stochastic<std::int32_t>(values[i] / divisor, uniforms[i]), limit);
    else
      codes[i] = within(round_nearest<std::int32_t>(values[i] / divisor), limit);
}

// Uniforms come kUniformBlock at a time, whatever the block; `first` is a multiple of 4.
template <bool kStochastic>
VS_FN void divide_block(const float* values, std::size_t count, std::uint64_t first, float scale,
                        const CodeRule& rule, int limit, std::int8_t* codes) {
  const float reciprocal = reciprocal_of(scale);
  std::uint32_t uniforms[kUniformBlock];
  for (std::size_t i = 0; i < count; i += kQuotientRun) {
    if (kStochastic && i % kUniformBlock == 0)
      write_uniforms(rule.key, rule.group, first + i, uniforms);
    const std::size_t left = count - i;
    divide_run<kStochastic>(values + i, left < kQuotientRun ? left : kQuotientRun, scale,
                            reciprocal, limit, uniforms + i % kUniformBlock, codes + i);
  }
}

void encode_steps(const float* values, const BlockRange& range, std::uint64_t first,
                  const CodeRule& rule, const float* scales, int limit, std::int8_t* codes) {
  for_each_block(range, [&](std::size_t block, std::size_t begin, std::size_t length) {
    const float scale = scales[block];
    if (scale == 0)
      __builtin_memset(codes + begin, 0, length);
    else if (rule.stochastic)
      divide_block<true>(values + begin, length, first + begin, scale, rule, limit, codes + begin);
    else
      divide_block<false>(values + begin, length, first + begin, scale, rule, limit, codes + begin);
  });
}

void add_steps(const std::int8_t* codes, const BlockRange& range, const std::uint64_t* multipliers,
               std::uint64_t* sums) {
  for_each_block(range, [&](std::size_t block, std::size_t begin, std::size_t length) {
    const std::uint64_t multiplier = multipliers[block];
    for (std::size_t i = begin; i < begin + length; ++i)
      sums[i] += static_cast<std::uint64_t>(std::int64_t{codes[i]}) * multiplier;
  });
}

// --- four bits: int4, nf4, fp4 ---------------------------------------------------------

void pack_nibbles(const std::int8_t* codes, std::size_t count, unsigned char* packed) {
  for (std::size_t i = 0; i < count / 2; ++i)
    packed[i] = static_cast<unsigned char>((codes[2 * i] & 15) | codes[2 * i + 1] << 4);
  if (count % 2 != 0) packed[count / 2] = static_cast<unsigned char>(codes[count - 1] & 15);
}

VS_FN std::int8_t nearest_code(float quotient, const NearestRule& rule) {
  std::int32_t rank = 0;
  for (int k = 0; k < 15; ++k) rank += quotient > rule.bounds[k] ? 1 : 0;
  return static_cast<std::int8_t>(rank);
}

VS_FN std::int8_t nearest_with_sign(float quotient, const NearestRule& rule) {
  const std::uint32_t bits = bits_of_float(quotient);
  const float magnitude = float_of_bits(bits & 0x7FFFFFFFu);
  std::int32_t rank = 0;
  for (int k = 0; k < 7; ++k) rank += magnitude > rule.bounds[k] ? 1 : 0;
  return static_cast<std::int8_t>(rank | static_cast<std::int32_t>(bits >> 28 & 8));
}

// Lanes of nearest_code(), or of nearest_with_sign().
template <bool kSignApart, class Held>
VS_FN Lanes nearest_codes(RankFloats quotient, const Held& held) {
  if constexpr (!kSignApart) return Held::rank(held, quotient);
  const auto bits = (Lanes)quotient;
  return Held::rank(held, (RankFloats)(bits & 0x7FFFFFFFu)) | (bits >> 28 & 8);
}

template <bool kSignApart>
void encode_nearest_blocks(const float* values, const BlockRange& range, const NearestRule& rule,
                           const float* scales, std::int8_t zero, std::int8_t* codes) {
  typedef Bounds<kSignApart ? 3 : 4> Held;
  constexpr std::size_t kRun = 32;  // narrowed in a loop of their own: GCC takes a vector apart
  Held held;
  Held::load(held, rule.bounds);
  for_each_block(range, [&](std::size_t block, std::size_t begin, std::size_t length) {
    const float scale = scales[block];
    const float* from = values + begin;
    std::int8_t* to = codes + begin;
    if (scale == 0) return static_cast<void>(__builtin_memset(to, zero, length));
    std::size_t i = 0;
    for (; i + kRun <= length; i += kRun) {
      std::uint32_t wide[kRun];
      for (std::size_t j = 0; j < kRun; j += VS_LANES) {
        RankFloats value;
        __builtin_memcpy(&value, from + i + j, sizeof value);
        const Lanes found = nearest_codes<kSignApart>(value / scale, held);
        __builtin_memcpy(wide + j, &found, sizeof found);
      }
      for (std::size_t j = 0; j < kRun; ++j) to[i + j] = static_cast<std::int8_t>(wide[j]);
    }
    for (; i < length; ++i)
      to[i] = kSignApart ? nearest_with_sign(from[i] / scale, rule)
                         : nearest_code(from[i] / scale, rule);
  });
}

void encode_nearest(const float* values, const BlockRange& range, const NearestRule& rule,
                    const float* scales, std::int8_t zero, std::int8_t* codes) {
  if (rule.sign_apart)
    encode_nearest_blocks<true>(values, range, rule, scales, zero, codes);
  else
    encode_nearest_blocks<false>(values, range, rule, scales, zero, codes);
}

// --- 8-bit floats ------------------------------------------------------------------------

template <class Format>
VS_FN void narrow_blocks(const float* values, const BlockRange& range, const float* scales,
                         std::uint8_t most, std::uint8_t* codes) {
  for_each_block(range, [&](std::size_t block, std::size_t begin, std::size_t length) {
    const float scale = scales[block];
    if (scale == 0)
      __builtin_memset(codes + begin, 0, length);
    else
      for (std::size_t i = begin; i < begin + length; ++i)
        codes[i] = narrow_fp8<Format>(values[i] / scale, most);
  });
}

template <class Format>
VS_FN void widen_blocks(const std::uint8_t* codes, const BlockRange& range, const float* scales,
                        float* values) {
  for_each_block(range, [&](std::size_t block, std::size_t begin, std::size_t length) {
    const float scale = scales[block];
    for (std::size_t i = begin; i < begin + length; ++i)
      values[i] = widen_fp8<Format>(codes[i]) * scale;
  });
}

void encode_fp8(Fp8 format, const float* values, const BlockRange& range, const float* scales,
                std::uint8_t most, std::uint8_t* codes) {
  if (format == Fp8::e4m3) return narrow_blocks<E4M3>(values, range, scales, most, codes);
  narrow_blocks<E5M2>(values, range, scales, most, codes);
}

void decode_fp8(Fp8 format, const std::uint8_t* codes, const BlockRange& range, const float* scales,
                float* values) {
  if (format == Fp8::e4m3) return widen_blocks<E4M3>(codes, range, scales, values);
  widen_blocks<E5M2>(codes, range, scales, values);
}

void max_patterns(const std::uint8_t* codes, const BlockRange& range, std::uint8_t* largest) {
  for_each_block(range, [&](std::size_t block, std::size_t begin, std::size_t length) {
    std::uint8_t found = 0;
    for (std::size_t i = begin; i < begin + length; ++i) {
      const auto magnitude = static_cast<std::uint8_t>(codes[i] & 0x7F);
      found = magnitude > found ? magnitude : found;
    }
    largest[block] = found;
  });
}

constexpr BlockKernels kBlockKernels = {
    max_blocks,     sum_blocks,         encode_steps,     add_steps,   pack_nibbles, encode_nearest,
    decode_nibbles, add_nibble_streams, max_ranks,        encode_fp8,  decode_fp8,   max_patterns,
    encode_signs,   decode_signs,       add_sign_streams, scale_terms,
};

}  // namespace
}  // namespace veilsum
