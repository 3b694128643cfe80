// Inner products of all pairs of rows. Included once per CPU level, see order_loops.inl.
#pragma once

#include "kernels/order_kernels.h"
#include "kernels/sum_lanes.inl"

namespace veilsum {
namespace {

// The lanes are a property of the sum: every level has the same eight, in one vector or in four.
constexpr std::size_t kGramLanes = 8;
constexpr std::size_t kGramVectors = kGramLanes / kSumLanes;

// Pairs of rows that are summed at once, as many as there are registers for.
constexpr std::size_t kPairRows = kGramVectors == 1 ? 4 : kGramVectors == 2 ? 2 : 1;
constexpr std::size_t kPairColumns = kGramVectors == 1 ? 4 : 2;
static_assert(kGramRows % kPairRows == 0 && kGramRows % kPairColumns == 0);

// sum + a * b. Where the product is exact, one rounding and two are the same.
template <bool kExactProducts>
VS_FN DoubleLanes multiply_add(DoubleLanes a, DoubleLanes b, DoubleLanes sum) {
#if defined(__AVX512F__)
  if constexpr (kExactProducts)
    return (DoubleLanes)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)sum);
#elif defined(__FMA__)
  if constexpr (kExactProducts)
    return (DoubleLanes)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)sum);
#endif
  return sum + a * b;
}

VS_FN double sum_of_lanes(const DoubleLanes* vectors) {
  double lanes[kGramLanes];
  __builtin_memcpy(lanes, vectors, sizeof lanes);
  for (std::size_t half = kGramLanes / 2; half > 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// Adds sum_of_lanes() of each column to its place.
#if defined(__AVX512F__)
// Of four columns side by side: halves of eight lanes, of four and of two.
VS_FN void add_sums(const DoubleLanes (*columns)[kGramVectors], double* gram) {
  static_assert(kPairColumns == 4);
  __m256d four[4];
#pragma GCC unroll 4
  for (std::size_t j = 0; j < 4; ++j) {
    const auto lanes = (__m512d)columns[j][0];
    four[j] = _mm256_add_pd(_mm512_castpd512_pd256(lanes), _mm512_extractf64x4_pd(lanes, 1));
  }
  const __m256d first = _mm256_add_pd(_mm256_permute2f128_pd(four[0], four[1], 0x20),
                                      _mm256_permute2f128_pd(four[0], four[1], 0x31));
  const __m256d second = _mm256_add_pd(_mm256_permute2f128_pd(four[2], four[3], 0x20),
                                       _mm256_permute2f128_pd(four[2], four[3], 0x31));
  const __m256d sums = _mm256_permute4x64_pd(_mm256_hadd_pd(first, second), 0xD8);
  _mm256_storeu_pd(gram, _mm256_add_pd(_mm256_loadu_pd(gram), sums));
}
#else
VS_FN void add_sums(const DoubleLanes (*columns)[kGramVectors], double* gram) {
  for (std::size_t j = 0; j < kPairColumns; ++j) gram[j] += sum_of_lanes(columns[j]);
}
#endif

VS_FN DoubleLanes load_doubles(const double* values) {
  DoubleLanes lanes;
  __builtin_memcpy(&lanes, values, sizeof lanes);
  return lanes;
}

template <bool kExactProducts>
VS_FN void add_pairs(const double* a, const double* b, std::size_t stride, double* gram) {
  DoubleLanes held[kPairRows][kPairColumns][kGramVectors] = {};
  for (std::size_t k = 0; k < kGramLeaf; k += kGramLanes)
    for (std::size_t v = 0; v < kGramVectors; ++v) {
      DoubleLanes right[kPairColumns];
      for (std::size_t j = 0; j < kPairColumns; ++j)
        right[j] = load_doubles(b + j * kGramStride + k + v * kSumLanes);
      for (std::size_t i = 0; i < kPairRows; ++i) {
        const DoubleLanes left = load_doubles(a + i * kGramStride + k + v * kSumLanes);
        for (std::size_t j = 0; j < kPairColumns; ++j)
          held[i][j][v] = multiply_add<kExactProducts>(left, right[j], held[i][j][v]);
      }
    }
  for (std::size_t i = 0; i < kPairRows; ++i) add_sums(held[i], gram + i * stride);
}

template <bool kExactProducts>
void add_gram(const double* packed, std::size_t rows, double* gram) {
  for (std::size_t i = 0; i < rows; i += kPairRows)
    for (std::size_t j = 0; j < i + kPairRows; j += kPairColumns)
      add_pairs<kExactProducts>(packed + i * kGramStride, packed + j * kGramStride, rows,
                                gram + i * rows + j);
}

// Written twice: as a template argument a Wire type would lose its alignment.
void pack_f32(const WireFloat* values, std::size_t count, double factor, double* packed) {
  for (std::size_t i = 0; i < count; ++i) packed[i] = static_cast<double>(values[i]) * factor;
  for (std::size_t i = count; i < kGramLeaf; ++i) packed[i] = 0;
}
void pack_f64(const WireDouble* values, std::size_t count, double factor, double* packed) {
  for (std::size_t i = 0; i < count; ++i) packed[i] = values[i] * factor;
  for (std::size_t i = count; i < kGramLeaf; ++i) packed[i] = 0;
}

constexpr GramKernels kGramKernels = {pack_f32, pack_f64, add_gram<true>, add_gram<false>};

}  // namespace
}  // namespace veilsum
