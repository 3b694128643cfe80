// One bit per value. Included once per CPU level, see block_loops.inl.
#pragma once

#include "element/half.h"
#include "kernels/blocks.inl"
#include "kernels/lanes.inl"
#include "kernels/screen.inl"

namespace veilsum {
namespace {

VS_FN std::uint32_t bit_at(const unsigned char* bits, std::size_t i) {
  return bits[i / 8] >> (i % 8) & 1u;
}

// Which of eight values are below 0.
VS_FN unsigned signs_of_eight(const float* values) {
#if defined(__AVX__)
  const __m256 below = _mm256_cmp_ps(_mm256_loadu_ps(values), _mm256_setzero_ps(), _CMP_LT_OQ);
  return static_cast<unsigned>(_mm256_movemask_ps(below));
#elif defined(__SSE2__)
  const __m128 low = _mm_cmplt_ps(_mm_loadu_ps(values), _mm_setzero_ps());
  const __m128 high = _mm_cmplt_ps(_mm_loadu_ps(values + 4), _mm_setzero_ps());
  return static_cast<unsigned>(_mm_movemask_ps(low) | _mm_movemask_ps(high) << 4);
#else
  unsigned byte = 0;
  for (std::size_t i = 0; i < 8; ++i) byte |= static_cast<unsigned>(values[i] < 0) << i;
  return byte;
#endif
}

// Blocks are whole bytes; of the last one, `length` values may end inside a byte.
VS_FN void write_signs(const float* values, std::size_t length, unsigned char* bits) {
  std::size_t begin = 0;
  for (; begin + 8 <= length; begin += 8)
    bits[begin / 8] = static_cast<unsigned char>(signs_of_eight(values + begin));
  if (begin == length) return;
  unsigned byte = 0;
  for (std::size_t i = begin; i < length; ++i)
    byte |= static_cast<unsigned>(values[i] < 0) << (i - begin);
  bits[begin / 8] = static_cast<unsigned char>(byte);
}

void encode_signs(const float* values, const BlockRange& range, const float* scales,
                  unsigned char* bits) {
  for_each_block(range, [&](std::size_t block, std::size_t begin, std::size_t length) {
    unsigned char* const out = bits + begin / 8;
    if (scales[block] == 0)
      __builtin_memset(out, 0, (length + 7) / 8);
    else
      write_signs(values + begin, length, out);
  });
}

// Eight values of the byte `bits`.
VS_FN void decode_byte(unsigned bits, std::uint32_t scale, float* values) {
  constexpr std::size_t kStep = VS_LANES < 8 ? VS_LANES : 8;
  typedef std::uint32_t Words __attribute__((vector_size(4 * kStep)));
  Words place;
  for (std::size_t lane = 0; lane < kStep; ++lane) place[lane] = 1u << lane;
  for (std::size_t i = 0; i < 8; i += kStep) {
    const Words here = (Words{} + (bits >> i)) & place;
    const Words sign = (Words)(here != 0) & 0x80000000u;
    const Words value = sign | scale;
    __builtin_memcpy(values + i, &value, sizeof value);
  }
}

void decode_signs(const unsigned char* bits, const BlockRange& range, const float* scales,
                  float* values) {
  for_each_block(range, [&](std::size_t block, std::size_t begin, std::size_t length) {
    // A scale of 0 comes with clear bits, so no -0 comes out.
    const std::uint32_t scale = bits_of_float(scales[block]);
    std::size_t i = begin;
    for (; i + 8 <= begin + length; i += 8) decode_byte(bits[i / 8], scale, values + i);
    for (; i < begin + length; ++i) values[i] = float_of_bits(scale | bit_at(bits, i) << 31);
  });
}

// Adds `plus`, or its opposite `minus` where the bit is set, to eight sums.
VS_FN void add_byte(unsigned bits, SumLanes plus, SumLanes minus, std::uint64_t* sums) {
#if defined(__AVX512F__)
  const auto chosen =
      _mm512_mask_blend_epi64(static_cast<__mmask8>(bits), (__m512i)plus, (__m512i)minus);
  _mm512_storeu_si512(sums, _mm512_add_epi64(_mm512_loadu_si512(sums), chosen));
#else
  SumLanes place;
  for (std::size_t lane = 0; lane < kSumLanes; ++lane) place[lane] = std::uint64_t{1} << lane;
  for (std::size_t i = 0; i < 8; i += kSumLanes) {
    const SumLanes here = (SumLanes{} + (bits >> i)) & place;
    const auto set = (SumLanes)(here == place);
    SumLanes sum;
    __builtin_memcpy(&sum, sums + i, sizeof sum);
    sum += (minus & set) | (plus & ~set);
    __builtin_memcpy(sums + i, &sum, sizeof sum);
  }
#endif
}

void add_signs(const unsigned char* bits, const BlockRange& range, const std::uint64_t* terms,
               std::uint64_t* sums) {
  for_each_block(range, [&](std::size_t block, std::size_t begin, std::size_t length) {
    const std::uint64_t term = terms[block];
    const SumLanes plus = SumLanes{} + term;
    std::size_t i = begin;
    for (; i + 8 <= begin + length; i += 8) add_byte(bits[i / 8], plus, -plus, sums + i);
    for (; i < begin + length; ++i) sums[i] += bit_at(bits, i) != 0 ? 0 - term : term;
  });
}

}  // namespace
}  // namespace veilsum
