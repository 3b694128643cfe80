// One bit per value. Included once per CPU level, see block_loops.inl.
#pragma once

#include "element/half.h"
#include "kernels/blocks.inl"
#include "kernels/lanes.inl"
#include "kernels/nibbles.inl"
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

// Vectors of sums that stay in registers while every stream is added to them.
constexpr std::size_t kSignVectors = VS_LANES == 16 ? 8 : 4;

// Takes `twice` from the sums whose bit is set: bit `first` of `bits` is that of the first sum.
VS_FN SumLanes take_where_set(SumLanes sums, const unsigned char* bits, std::size_t first,
                              SumLanes twice) {
#if defined(__AVX512F__)
  // A mask straight from memory: moving one out of a register takes the place of a subtraction.
  const __mmask8 set = _load_mask8((__mmask8*)(bits + first / 8));
  return (SumLanes)_mm512_mask_sub_epi64((__m512i)sums, set, (__m512i)sums, (__m512i)twice);
#else
  const unsigned byte = bits[first / 8] >> (first % 8);
  SumLanes place;
  for (std::size_t lane = 0; lane < kSumLanes; ++lane) place[lane] = std::uint64_t{1} << lane;
  const auto set = (SumLanes)(((SumLanes{} + byte) & place) == place);
  return sums - (twice & set);
#endif
}

// Adds every stream to kVectors vectors of sums. `total`: what all streams' terms add up to. A set
// bit takes its term away twice.
template <std::size_t kVectors>
VS_FN void add_sign_unit(const SignStream* streams, std::size_t stream_count, std::size_t block,
                         std::size_t begin, std::uint64_t total, std::uint64_t* sums) {
  SumLanes held[kVectors];
#pragma GCC unroll 8
  for (std::size_t v = 0; v < kVectors; ++v) {
    __builtin_memcpy(&held[v], sums + begin + v * kSumLanes, sizeof held[v]);
    held[v] += total;
  }
  for (std::size_t k = 0; k < stream_count; ++k) {
    const unsigned char* bits = streams[k].bits + begin / 8;
    const SumLanes twice = SumLanes{} + 2 * streams[k].terms[block];
#pragma GCC unroll 8
    for (std::size_t v = 0; v < kVectors; ++v)
      held[v] = take_where_set(held[v], bits, v * kSumLanes, twice);
  }
#pragma GCC unroll 8
  for (std::size_t v = 0; v < kVectors; ++v)
    __builtin_memcpy(sums + begin + v * kSumLanes, &held[v], sizeof held[v]);
}

VS_FN void add_sign(const SignStream* streams, std::size_t stream_count, std::size_t block,
                    std::size_t i, std::uint64_t& sum) {
  for (std::size_t k = 0; k < stream_count; ++k) {
    const std::uint64_t term = streams[k].terms[block];
    sum += bit_at(streams[k].bits, i) != 0 ? 0 - term : term;
  }
}

void add_sign_streams(const SignStream* streams, std::size_t stream_count, const BlockRange& range,
                      std::uint64_t* sums) {
  // As many coordinates further on is what will be asked for next.
  for (std::size_t k = 0; k < stream_count; ++k)
    prefetch(reinterpret_cast<const char*>(streams[k].bits) + range.count / 8, range.count / 8);
  for_each_block(range, [&](std::size_t block, std::size_t begin, std::size_t length) {
    std::uint64_t total = 0;
    for (std::size_t k = 0; k < stream_count; ++k) total += streams[k].terms[block];
    std::size_t i = begin;
    for (; i + kSignVectors * kSumLanes <= begin + length; i += kSignVectors * kSumLanes)
      add_sign_unit<kSignVectors>(streams, stream_count, block, i, total, sums);
    for (; i + 8 <= begin + length; i += 8)
      add_sign_unit<8 / kSumLanes>(streams, stream_count, block, i, total, sums);
    for (; i < begin + length; ++i) add_sign(streams, stream_count, block, i, sums[i]);
  });
}

void scale_terms(const float* scales, std::size_t blocks, double factor, std::uint64_t* terms) {
  std::size_t i = 0;
  for (; i + kSumLanes <= blocks; i += kSumLanes) {
    FloatLanes wide;
    __builtin_memcpy(&wide, scales + i, sizeof wide);
    const SumLanes found = bounded_terms(to_double_lanes(wide) * factor);
    __builtin_memcpy(terms + i, &found, sizeof found);
  }
  for (; i < blocks; ++i) {
    const SumLanes found = bounded_terms(DoubleLanes{} + scales[i] * factor);
    terms[i] = found[0];
  }
}

}  // namespace
}  // namespace veilsum
