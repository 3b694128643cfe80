// What the lanes of a vector are compared with when they are sorted. Included once per CPU level.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "element/annotate.h"
#include "element/sorting_network.h"

namespace veilsum {
namespace {

// a < b ? a : b and b > a ? b : a: of two zeros, or if one is not a number, both values still
// come out once. Compilers see two comparisons in that, where x86 has an instruction each.
#if defined(__AVX512F__)
#define VS_FLOAT_OP(op, a, b) (decltype(a))_mm512_##op##_ps((__m512)a, (__m512)b)
#define VS_DOUBLE_OP(op, a, b) (decltype(a))_mm512_##op##_pd((__m512d)a, (__m512d)b)
#elif defined(__AVX2__)
#define VS_FLOAT_OP(op, a, b) (decltype(a))_mm256_##op##_ps((__m256)a, (__m256)b)
#define VS_DOUBLE_OP(op, a, b) (decltype(a))_mm256_##op##_pd((__m256d)a, (__m256d)b)
#elif defined(__SSE2__)
#define VS_FLOAT_OP(op, a, b) (decltype(a))_mm_##op##_ps((__m128)a, (__m128)b)
#define VS_DOUBLE_OP(op, a, b) (decltype(a))_mm_##op##_pd((__m128d)a, (__m128d)b)
#endif

template <class Lanes>
VS_FN Lanes smaller_of(Lanes a, Lanes b) {
#if defined(VS_FLOAT_OP)
  if constexpr (sizeof(a[0]) == sizeof(float))
    return VS_FLOAT_OP(min, a, b);
  else
    return VS_DOUBLE_OP(min, a, b);
#else
  return a < b ? a : b;
#endif
}

template <class Lanes>
VS_FN Lanes larger_of(Lanes a, Lanes b) {
#if defined(VS_FLOAT_OP)
  if constexpr (sizeof(a[0]) == sizeof(float))
    return VS_FLOAT_OP(max, b, a);
  else
    return VS_DOUBLE_OP(max, b, a);
#else
  return b > a ? b : a;
#endif
}

#undef VS_FLOAT_OP
#undef VS_DOUBLE_OP

struct LaneOrder {
  template <class Lanes>
  VS_FN Lanes smaller(Lanes a, Lanes b) {
    return smaller_of(a, b);
  }
  template <class Lanes>
  VS_FN Lanes larger(Lanes a, Lanes b) {
    return larger_of(a, b);
  }
};

}  // namespace
}  // namespace veilsum
