// value / divisor as an integer, decided by a multiplication of floats wherever that is provably
// enough: dividing doubles takes ten times as long. Included once per CPU level, see
// block_loops.inl.
#pragma once

#include "element/half.h"
#include "kernels/lanes.inl"
#include "kernels/ranks.inl"

namespace veilsum {
namespace {

// Values that are decided together.
constexpr std::size_t kQuotientRun = 32;

// The reciprocal and the product are each off by at most 2^-24 of themselves, as long as the first
// is a normal number, and the sum with a uniform by at most 2^-24 of itself: a quotient below 2^9
// is off by less than kDoubt. Scales are the largest magnitude of a block by 127 or less, rounded
// to f16 at worst, so that no quotient is larger.
constexpr float kDoubt = 0x1p-13f;

// round(y) and floor(y) in every lane, for |y| < 2^22.
VS_FN SignedLanes round_floats(RankFloats y) {
#if defined(__AVX512F__)
  return (SignedLanes)_mm512_maskz_cvt_roundps_epi32(0xFFFF, (__m512)y,
                                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  return __builtin_convertvector((y + 0x1.8p23f) - 0x1.8p23f, SignedLanes);
#endif
}

VS_FN SignedLanes floor_floats(RankFloats y) {
#if defined(__AVX512F__)
  return (SignedLanes)_mm512_maskz_cvt_roundps_epi32(0xFFFF, (__m512)y,
                                                     _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
  const RankFloats nearest = (y + 0x1.8p23f) - 0x1.8p23f;
  // True is -1 in a lane.
  return __builtin_convertvector(nearest, SignedLanes) + (nearest > y);
#endif
}

// Patterns of |y - round(y)|, which order like the magnitudes.
VS_FN SignedLanes distance_to_integer(RankFloats y) {
#if defined(__AVX512DQ__)
  const auto distance = (SignedLanes)_mm512_maskz_reduce_ps(
      0xFFFF, (__m512)y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const auto distance = (SignedLanes)(y - ((y + 0x1.8p23f) - 0x1.8p23f));
#endif
  return distance & 0x7FFFFFFF;
}

// Writes round(values[i] / divisor), or floor(values[i] / divisor + uniforms[i] / 2^24), for
// kQuotientRun values. False if one of them is in doubt: then none may be used.
template <bool kStochastic>
VS_FN bool divide_by_reciprocal(const float* values, float reciprocal,
                                const std::uint32_t* uniforms, std::int32_t* steps) {
  SignedLanes doubt{};  // its sign
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kQuotientRun; i += VS_LANES) {
    RankFloats loaded;
    __builtin_memcpy(&loaded, values + i, sizeof loaded);
    const RankFloats quotient = loaded * reciprocal;
    SignedLanes found;
    if constexpr (kStochastic) {
      SignedLanes dither;
      __builtin_memcpy(&dither, uniforms + i, sizeof dither);
      const RankFloats y = quotient + __builtin_convertvector(dither, RankFloats) * 0x1p-24f;
      found = floor_floats(y);
      doubt |= distance_to_integer(y) - static_cast<std::int32_t>(bits_of_float(kDoubt));
    } else {
      found = round_floats(quotient);
      doubt |=
          static_cast<std::int32_t>(bits_of_float(0.5f - kDoubt)) - distance_to_integer(quotient);
    }
    __builtin_memcpy(steps + i, &found, sizeof found);
  }
  return !any_sign(doubt);
}

}  // namespace
}  // namespace veilsum
