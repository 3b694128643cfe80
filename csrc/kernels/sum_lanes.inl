// Vectors of 64-bit sums and of the doubles that go into them. Included once per CPU level.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "element/fixed_point.h"

namespace veilsum {
namespace {

constexpr std::size_t kSumLanes = VS_LANES / 2;
typedef std::uint64_t SumLanes __attribute__((vector_size(8 * kSumLanes)));
typedef double DoubleLanes __attribute__((vector_size(8 * kSumLanes)));
typedef float FloatLanes __attribute__((vector_size(4 * kSumLanes)));

// to_fixed_point() of every lane.
VS_FN SumLanes to_fixed_point_lanes(DoubleLanes value) {
#if defined(__AVX512DQ__)
  return (SumLanes)_mm512_cvtpd_epi64((__m512d)value);  // rounds like the adder
#else
  const DoubleLanes high = value + 0x1.8p84;
  const DoubleLanes low = (value - (high - 0x1.8p84)) + 0x1.8p52;
  // The pattern of 1.5 * 2^84 ends in 32 zeros, so it need not be taken off the upper part.
  return ((SumLanes)high << 32) + ((SumLanes)low - bits_of_double(0x1.8p52));
#endif
}

// Compilers take the detour over halves of a vector here.
VS_FN DoubleLanes to_double_lanes(FloatLanes value) {
#if defined(__AVX512F__)
  return (DoubleLanes)_mm512_cvtps_pd((__m256)value);
#elif defined(__AVX2__)
  return (DoubleLanes)_mm256_cvtps_pd((__m128)value);
#else
  return __builtin_convertvector(value, DoubleLanes);
#endif
}

}  // namespace
}  // namespace veilsum
