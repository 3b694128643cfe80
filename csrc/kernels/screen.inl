// Largest magnitudes and sums of squares. Included once per CPU level, see codec_loops.inl.
#pragma once

#include "element/fixed_point.h"
#include "element/half.h"
#include "kernels/codec_kernels.h"
#include "kernels/sum_lanes.inl"

namespace veilsum {
namespace {

typedef std::int32_t MagnitudeLanes __attribute__((vector_size(4 * VS_LANES)));
constexpr std::size_t kScreenVectors = 4;
constexpr std::size_t kScreenBlock = kScreenVectors * VS_LANES;
// Bytes from what is looked at to what is fetched meanwhile.
constexpr std::size_t kScreenAhead = 4096;

VS_FN MagnitudeLanes larger(MagnitudeLanes a, MagnitudeLanes b) { return a > b ? a : b; }

// Signed, because every level can compare signed words; without the sign bit no pattern is
// negative.
std::uint32_t max_abs32(const WireFloat* values, std::size_t count) {
  MagnitudeLanes largest[kScreenVectors] = {};
  std::size_t i = 0;
  for (; i + kScreenBlock <= count; i += kScreenBlock) {
    const char* place = reinterpret_cast<const char*>(values + i);
    for (std::size_t at = 0; at < 4 * kScreenBlock; at += 64)
      __builtin_prefetch(place + kScreenAhead + at);
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kScreenVectors; ++v) {
      MagnitudeLanes lanes;
      __builtin_memcpy(&lanes, place + v * sizeof lanes, sizeof lanes);
      largest[v] = larger(largest[v], lanes & 0x7FFFFFFF);
    }
  }
  const MagnitudeLanes lanes =
      larger(larger(largest[0], largest[1]), larger(largest[2], largest[3]));
  std::int32_t found = 0;
  for (std::size_t lane = 0; lane < VS_LANES; ++lane)
    found = lanes[lane] > found ? lanes[lane] : found;
  for (; i < count; ++i) {
    const auto magnitude = static_cast<std::int32_t>(bits_of_float(values[i]) & 0x7FFFFFFFu);
    found = magnitude > found ? magnitude : found;
  }
  return static_cast<std::uint32_t>(found);
}

std::uint64_t max_abs64(const WireDouble* values, std::size_t count) {
  std::int64_t largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto magnitude =
        static_cast<std::int64_t>(bits_of_double(values[i]) & 0x7FFFFFFFFFFFFFFFu);
    largest = magnitude > largest ? magnitude : largest;
  }
  return static_cast<std::uint64_t>(largest);
}

std::uint32_t max_abs16(const WireHalf* values, std::size_t count) {
  std::int16_t largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto magnitude = static_cast<std::int16_t>(values[i] & 0x7FFF);
    largest = magnitude > largest ? magnitude : largest;
  }
  return static_cast<std::uint32_t>(largest);
}

// The lanes are a property of the sum, not of the CPU: every level has the same sixteen, in one
// vector or in eight.
struct SquareSum {
  DoubleLanes lanes[kSquareLanes / kSumLanes] = {};

  VS_FN void add(SquareSum& sum, const WireFloat* values) {
    for (std::size_t v = 0; v < kSquareLanes / kSumLanes; ++v) {
      FloatLanes narrow;
      __builtin_memcpy(&narrow, values + v * kSumLanes, sizeof narrow);
      const DoubleLanes wide = to_double_lanes(narrow);
      sum.lanes[v] += wide * wide;
    }
  }
  VS_FN void add(SquareSum& sum, const WireDouble* values) {
    for (std::size_t v = 0; v < kSquareLanes / kSumLanes; ++v) {
      DoubleLanes wide;
      __builtin_memcpy(&wide, values + v * kSumLanes, sizeof wide);
      sum.lanes[v] += wide * wide;
    }
  }
  VS_FN double total(const SquareSum& sum) {
    double lanes[kSquareLanes];
    __builtin_memcpy(lanes, sum.lanes, sizeof lanes);
    for (std::size_t half = kSquareLanes / 2; half > 0; half /= 2)
      for (std::size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
  }
};

// Squares and magnitudes in turns over pieces that stay in registers' reach: one pass over
// memory.
constexpr std::size_t kScreenPiece = 512;

// A template argument loses the alignment of a Wire type, a member of one keeps it.
struct SingleFormat {
  typedef WireFloat Wire;
  typedef std::uint32_t Bits;
  static Bits largest(const Wire* values, std::size_t count) { return max_abs32(values, count); }
};
struct DoubleFormat {
  typedef WireDouble Wire;
  typedef std::uint64_t Bits;
  static Bits largest(const Wire* values, std::size_t count) { return max_abs64(values, count); }
};

template <class Format>
VS_FN double screen_values(const typename Format::Wire* values, std::size_t count,
                           typename Format::Bits* largest) {
  SquareSum squares;
  typename Format::Bits found = 0;
  for (std::size_t begin = 0; begin < count; begin += kScreenPiece) {
    const std::size_t length = count - begin < kScreenPiece ? count - begin : kScreenPiece;
    const typename Format::Bits bits = Format::largest(values + begin, length);
    found = bits > found ? bits : found;
    std::size_t i = 0;
    for (; i + kSquareLanes <= length; i += kSquareLanes)
      SquareSum::add(squares, values + begin + i);
    if (i == length) continue;
    typename Format::Wire rest[kSquareLanes] = {};
    for (std::size_t lane = 0; i < length; ++i, ++lane) rest[lane] = values[begin + i];
    SquareSum::add(squares, rest);
  }
  *largest = found;
  return SquareSum::total(squares);
}

double screen_f32(const WireFloat* values, std::size_t count, std::uint32_t* largest) {
  return screen_values<SingleFormat>(values, count, largest);
}

double screen_f64(const WireDouble* values, std::size_t count, std::uint64_t* largest) {
  return screen_values<DoubleFormat>(values, count, largest);
}

}  // namespace
}  // namespace veilsum
