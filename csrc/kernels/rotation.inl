// The loops of the randomized Hadamard transform. Included once per CPU level; everything has
// internal linkage and no inline function of the standard library is called (see
// ring_loops.inl).
//
// Every value takes part in one sum and one difference per stride, in ascending order of the
// strides, whatever the vectors are: the tree of roundings is the same on every level.
#pragma once

#include "element/rotation.h"
#include "kernels/rotation_kernels.h"
#include "kernels/screen.inl"
#include "kernels/uniforms.inl"

namespace veilsum {
namespace {

// The vectors of one value type, and integers of the same width.
template <class Value>
struct RotationLanes;
template <>
struct RotationLanes<float> {
  typedef float Vector __attribute__((vector_size(4 * VS_LANES)));
  // At the address of any value. Read through this type, because GCC splits a copy.
  typedef Vector Stored __attribute__((aligned(4), may_alias));
  typedef Lanes Integers;
  static constexpr std::uint32_t kSign = 0x80000000u;
};
template <>
struct RotationLanes<double> {
  typedef double Vector __attribute__((vector_size(4 * VS_LANES)));
  typedef Vector Stored __attribute__((aligned(8), may_alias));
  typedef WideLanes Integers;
  static constexpr std::uint64_t kSign = 0x8000000000000000u;
};

// Vectors that a pass holds in registers: half of them, the others take intermediate values.
#if VS_LANES == 16
constexpr std::size_t kMostRadix = 16;
#else
constexpr std::size_t kMostRadix = 8;
#endif

#if VS_LANES == 16
VS_FN Lanes integer_lanes(float) { return lane_numbers(); }
VS_FN WideLanes integer_lanes(double) { return WideLanes{0, 1, 2, 3, 4, 5, 6, 7}; }
#elif VS_LANES == 8
VS_FN Lanes integer_lanes(float) { return lane_numbers(); }
VS_FN WideLanes integer_lanes(double) { return WideLanes{0, 1, 2, 3}; }
#else
VS_FN Lanes integer_lanes(float) { return lane_numbers(); }
VS_FN WideLanes integer_lanes(double) { return WideLanes{0, 1}; }
#endif

template <class Value>
VS_FN auto swap_partners(typename RotationLanes<Value>::Vector x, unsigned stride) {
#if defined(__clang__)
  constexpr unsigned kLanes = sizeof x / sizeof(Value);
  auto swapped = x;
  for (unsigned lane = 0; lane < kLanes; ++lane) swapped[lane] = x[lane ^ stride];
  return swapped;
#else
  return __builtin_shuffle(x, integer_lanes(Value{}) ^ stride);
#endif
}

// One stride within each vector: the lower lane of a pair takes the sum, the upper one the
// difference, which is the sum with its own sign flipped.
template <class Value, unsigned kStride>
VS_FN auto cross_lanes(typename RotationLanes<Value>::Vector x) {
  typedef typename RotationLanes<Value>::Vector Vector;
  typedef typename RotationLanes<Value>::Integers Integers;
  const Integers upper =
      (Integers)((integer_lanes(Value{}) & kStride) != 0) & RotationLanes<Value>::kSign;
  return swap_partners<Value>(x, kStride) + (Vector)((Integers)x ^ upper);
}

template <class Value, unsigned kStride = 1>
VS_FN auto cross_all_lanes(typename RotationLanes<Value>::Vector x) {
  if constexpr (kStride * sizeof(Value) == sizeof x)
    return x;
  else
    return cross_all_lanes<Value, 2 * kStride>(cross_lanes<Value, kStride>(x));
}

// Strides 1, 2, .. kRadix/2 in units of vectors.
template <std::size_t kRadix, class Vector>
VS_FN void cross_vectors(Vector x[kRadix]) {
#pragma GCC unroll 4
  for (std::size_t stride = 1; stride < kRadix; stride *= 2)
#pragma GCC unroll 16
    for (std::size_t i = 0; i < kRadix; ++i)
      if ((i & stride) == 0) {
        const Vector sum = x[i] + x[i + stride];
        x[i + stride] = x[i] - x[i + stride];
        x[i] = sum;
      }
}

// kRadix vectors that lie `stride` values apart. The first pass also scales them and crosses
// their lanes.
template <class Value, std::size_t kRadix, bool kFirst>
VS_FN void transform_vectors(Value* values, std::size_t stride, Value scale) {
  typedef typename RotationLanes<Value>::Stored Stored;
  typename RotationLanes<Value>::Vector x[kRadix];
#pragma GCC unroll 16
  for (std::size_t i = 0; i < kRadix; ++i) {
    x[i] = *reinterpret_cast<const Stored*>(values + i * stride);
    if constexpr (kFirst) x[i] = cross_all_lanes<Value>(x[i] * scale);
  }
  cross_vectors<kRadix>(x);
#pragma GCC unroll 16
  for (std::size_t i = 0; i < kRadix; ++i) *reinterpret_cast<Stored*>(values + i * stride) = x[i];
}

// Strides kStride .. kBlock/2, as many in one pass over the block as registers allow.
template <class Value, std::size_t kBlock, std::size_t kStride>
VS_FN void transform_from(Value* values, Value scale) {
  constexpr std::size_t kLanes = sizeof(typename RotationLanes<Value>::Vector) / sizeof(Value);
  constexpr std::size_t kLeft = kBlock / kStride;
  constexpr std::size_t kRadix = kLeft < kMostRadix ? kLeft : kMostRadix;
  for (std::size_t begin = 0; begin < kBlock; begin += kRadix * kStride)
    for (std::size_t i = 0; i < kStride; i += kLanes)
      transform_vectors<Value, kRadix, kStride == kLanes>(values + begin + i, kStride, scale);
  if constexpr (kRadix < kLeft) transform_from<Value, kBlock, kStride * kRadix>(values, scale);
}

template <class Value, std::size_t kBlock>
void transform_block(Value* values) {
  constexpr std::size_t kLanes = sizeof(typename RotationLanes<Value>::Vector) / sizeof(Value);
  transform_from<Value, kBlock, kLanes>(values, rotation_scale(kBlock));
}

template <class Value>
void hadamard(Value* values, std::size_t block) {
  switch (block) {
    case 4096:
      return transform_block<Value, 4096>(values);
    case 1024:
      return transform_block<Value, 1024>(values);
    case 256:
      return transform_block<Value, 256>(values);
    default:
      return transform_block<Value, 64>(values);
  }
}

// --- scales ------------------------------------------------------------------------

// Values inside +-bound, which is nearly all there ever are.
VS_FN void scale_within(float* values, std::size_t count, double gain) {
  for (std::size_t i = 0; i < count; ++i)
    values[i] = static_cast<float>(static_cast<double>(values[i]) * gain);
}

std::size_t scale_f32(float* values, std::size_t count, double gain, double bound) {
  // Multiplication keeps the order, so the largest value has the largest product.
  if (static_cast<double>(float_of_bits(max_abs32(values, count))) * gain <= bound) {
    scale_within(values, count, gain);
    return 0;
  }
  std::uint32_t beyond = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double scaled = static_cast<double>(values[i]) * gain;
    values[i] = bounded_float(scaled, bound);
    beyond += __builtin_fabs(scaled) > bound ? 1 : 0;
  }
  return beyond;
}

// --- signs -------------------------------------------------------------------------

// Sign bits of a whole batch: 4 words per counter, in order.
constexpr std::size_t kSignBatch = kSignsPerCounter * kWideLanes;

VS_FN void write_sign_batch(std::uint64_t first_run, std::uint32_t group, PhiloxKey key,
                            std::uint32_t* words) {
  const WideLanes runs = integer_lanes(double{}) + first_run;
  WideLanes x[4] = {runs, runs >> 32, WideLanes{} + group, WideLanes{} + 1};
  philox_lanes(x, key);
  for (std::size_t lane = 0; lane < kWideLanes; ++lane)
    for (std::size_t w = 0; w < 4; ++w)
      words[4 * lane + w] = static_cast<std::uint32_t>(x[w][lane]);
}

// Flips values[i] if bit i of `bits` says so, for i below the lanes of a vector.
template <class Value>
VS_FN void flip_vector(Value* values, std::uint32_t bits) {
  typedef typename RotationLanes<Value>::Vector Vector;
  typedef typename RotationLanes<Value>::Integers Integers;
  const Integers own_bit = (Integers{} + 1) << integer_lanes(Value{});
  const Integers flipped = (Integers)(((Integers{} + bits) & own_bit) != 0);
  typedef typename RotationLanes<Value>::Stored Stored;
  Stored* const place = reinterpret_cast<Stored*>(values);
  const Vector x = *place;
  *place = (Vector)((Integers)x ^ (flipped & RotationLanes<Value>::kSign));
}

template <class Value>
VS_FN void flip_word(Value* values, std::uint32_t bits) {
  constexpr std::size_t kLanes = sizeof(typename RotationLanes<Value>::Vector) / sizeof(Value);
#pragma GCC unroll 16
  for (std::size_t i = 0; i < 32; i += kLanes) flip_vector(values + i, bits >> i);
}

template <class Value>
void flip_signs(Value* values, std::size_t count, std::uint64_t first, std::uint32_t group,
                PhiloxKey key) {
  std::uint32_t words[kSignBatch / 32];
  const std::size_t skipped = first % kSignsPerCounter;  // 0 or 64
  const std::size_t end = skipped + count;
  for (std::size_t begin = 0; begin < end; begin += kSignBatch) {
    write_sign_batch((first - skipped + begin) / kSignsPerCounter, group, key, words);
    for (std::size_t i = 0; i < kSignBatch && begin + i < end; i += 32)
      if (begin + i >= skipped) flip_word(values + (begin + i - skipped), words[i / 32]);
  }
}

constexpr RotationKernels kRotationKernels = {
    .scale_f32 = scale_f32,
    .hadamard_f32 = hadamard<float>,
    .hadamard_f64 = hadamard<double>,
    .flip_signs_f32 = flip_signs<float>,
    .flip_signs_f64 = flip_signs<double>,
};

}  // namespace
}  // namespace veilsum
