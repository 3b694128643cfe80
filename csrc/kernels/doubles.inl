// Half a vector of 32-bit lanes as a vector of doubles, and back. Included once per CPU level.
#pragma once

#include "kernels/lanes.inl"

namespace veilsum {
namespace {

typedef float HalfFloats __attribute__((vector_size(2 * VS_LANES)));
typedef std::int32_t HalfSteps __attribute__((vector_size(2 * VS_LANES)));
typedef double Doubles __attribute__((vector_size(4 * VS_LANES)));

// GCC 12 takes these conversions apart where the result is wider than half a register. Of the
// AVX-512 ones the masked forms, because it warns about its own header at the plain ones.
#if defined(__AVX512F__)
VS_FN Doubles to_doubles(HalfFloats x) { return (Doubles)_mm512_maskz_cvtps_pd(0xFF, (__m256)x); }
VS_FN Doubles to_doubles(HalfSteps x) {
  return (Doubles)_mm512_maskz_cvtepi32_pd(0xFF, (__m256i)x);
}
#elif defined(__AVX__)
VS_FN Doubles to_doubles(HalfFloats x) { return (Doubles)_mm256_cvtps_pd((__m128)x); }
VS_FN Doubles to_doubles(HalfSteps x) { return (Doubles)_mm256_cvtepi32_pd((__m128i)x); }
#else
VS_FN Doubles to_doubles(HalfFloats x) { return __builtin_convertvector(x, Doubles); }
VS_FN Doubles to_doubles(HalfSteps x) { return __builtin_convertvector(x, Doubles); }
#endif

// Lanes of floor_to_step().
VS_FN HalfSteps floor_to_steps(Doubles y) {
#if defined(__AVX512F__)
  return (HalfSteps)_mm512_maskz_cvt_roundpd_epi32(0xFF, (__m512d)y,
                                                   _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif defined(__AVX__)
  return (HalfSteps)_mm256_cvttpd_epi32(_mm256_floor_pd((__m256d)y));
#else
  const HalfSteps truncated = __builtin_convertvector(y, HalfSteps);
  // True is -1 in a lane.
  return truncated + __builtin_convertvector(to_doubles(truncated) > y, HalfSteps);
#endif
}

// Lanes of round_nearest().
VS_FN HalfSteps round_to_steps(Doubles y) {
#if defined(__AVX512F__)
  return (HalfSteps)_mm512_maskz_cvt_roundpd_epi32(0xFF, (__m512d)y,
                                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const Doubles whole = (y + 0x1.8p52) - 0x1.8p52;
#if defined(__AVX__)
  return (HalfSteps)_mm256_cvttpd_epi32((__m256d)whole);
#else
  return __builtin_convertvector(whole, HalfSteps);
#endif
#endif
}

// y + uniform / 2^24 in every lane. The quotient is exact, so that a fused addition rounds like one
// that is not.
VS_FN Doubles add_uniforms(Doubles y, HalfSteps uniforms) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_fmadd_pd((__m512d)to_doubles(uniforms), _mm512_set1_pd(0x1p-24),
                                  (__m512d)y);
#else
  return y + to_doubles(uniforms) * 0x1p-24;
#endif
}

}  // namespace
}  // namespace veilsum
