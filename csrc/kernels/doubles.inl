// Half a vector of 32-bit lanes as a vector of doubles. Included once per CPU level.
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

}  // namespace
}  // namespace veilsum
