// The loops over encoded values. Included once per CPU level; everything has internal
// linkage and no inline function of the standard library is called (see ring_loops.inl).
#pragma once

#include "element/fixed_point.h"
#include "element/half.h"
#include "element/quantize.h"
#include "kernels/checksum.inl"
#include "kernels/codec_kernels.h"
#include "kernels/screen.inl"
#include "kernels/uniforms.inl"

namespace veilsum {
namespace {

// --- casts -----------------------------------------------------------------------

void widen_f16(const WireHalf* values, std::size_t count, float* widened) {
  for (std::size_t i = 0; i < count; ++i) widened[i] = widen_half(values[i]);
}

void widen_bf16(const WireHalf* values, std::size_t count, float* widened) {
  for (std::size_t i = 0; i < count; ++i) widened[i] = widen_brain(values[i]);
}

void narrow_f16(const WireFloat* values, std::size_t count, WireHalf* narrowed) {
  for (std::size_t i = 0; i < count; ++i) narrowed[i] = narrow_half(values[i]);
}

void narrow_bf16(const WireFloat* values, std::size_t count, WireHalf* narrowed) {
  for (std::size_t i = 0; i < count; ++i) narrowed[i] = narrow_brain(values[i]);
}

// --- int8 ------------------------------------------------------------------------

constexpr float kSmallestNormal = 0x1p-126f;
constexpr float kLargest = 0x1.fffffep127f;

// The scale of a block; 0 if it would be subnormal, which decoders refuse.
VS_FN float block_scale(float max_abs) {
  const float scale = max_abs / 127;
  // Division may have rounded up so far that 127 * scale is beyond every float; the next
  // smaller scale is then the right one.
  if (static_cast<double>(scale) * 127 > static_cast<double>(kLargest))
    return float_of_bits(bits_of_float(scale) - 1);
  return scale < kSmallestNormal ? 0 : scale;
}

static_assert(kUniformBlock == kInt8Block);

// |y| <= 127.0001. Rounding of the scale and of the dither can reach 128, which is no code.
VS_FN std::int8_t to_code(std::int32_t step) {
  return static_cast<std::int8_t>(step > 127 ? 127 : step < -127 ? -127 : step);
}

VS_FN void encode_block(const float* values, std::size_t count, std::uint64_t first, float scale,
                        const CodeRule& rule, std::int8_t* codes) {
  if (scale == 0) {
    for (std::size_t i = 0; i < count; ++i) codes[i] = 0;
    return;
  }
  const double divisor = scale;
  if (!rule.stochastic) {
    for (std::size_t i = 0; i < count; ++i)
      codes[i] = to_code(round_nearest<std::int32_t>(values[i] / divisor));
    return;
  }
  std::uint32_t uniforms[kUniformBlock];
  write_uniforms(rule.key, rule.group, first, uniforms);
  for (std::size_t i = 0; i < count; ++i)
    codes[i] = to_code(round_stochastic<std::int32_t>(values[i] / divisor, uniforms[i]));
}

void encode_int8(const float* values, std::size_t count, std::uint64_t first, const CodeRule& rule,
                 WireFloat* scales, std::int8_t* codes) {
  for (std::size_t begin = 0; begin < count; begin += kInt8Block) {
    const std::size_t length = count - begin < kInt8Block ? count - begin : kInt8Block;
    const float scale = block_scale(float_of_bits(max_abs32(values + begin, length)));
    scales[begin / kInt8Block] = scale;
    encode_block(values + begin, length, first + begin, scale, rule, codes + begin);
  }
}

void decode_int8(const std::int8_t* codes, const WireFloat* scales, std::size_t count,
                 float* values) {
  for (std::size_t begin = 0; begin < count; begin += kInt8Block) {
    const std::size_t length = count - begin < kInt8Block ? count - begin : kInt8Block;
    const float scale = scales[begin / kInt8Block];
    for (std::size_t i = begin; i < begin + length; ++i)
      values[i] = static_cast<float>(codes[i]) * scale;
  }
}

void max_codes(const std::int8_t* codes, std::size_t count, std::uint8_t* largest) {
  for (std::size_t begin = 0; begin < count; begin += kInt8Block) {
    const std::size_t length = count - begin < kInt8Block ? count - begin : kInt8Block;
    std::uint8_t found = 0;
    for (std::size_t i = begin; i < begin + length; ++i) {
      const auto magnitude = static_cast<std::uint8_t>(codes[i] < 0 ? -codes[i] : codes[i]);
      found = magnitude > found ? magnitude : found;
    }
    largest[begin / kInt8Block] = found;
  }
}

void square_codes(const std::int8_t* codes, std::size_t count, std::uint32_t* squares) {
  for (std::size_t begin = 0; begin < count; begin += kInt8Block) {
    const std::size_t length = count - begin < kInt8Block ? count - begin : kInt8Block;
    std::int32_t sum = 0;
    for (std::size_t i = begin; i < begin + length; ++i) sum += codes[i] * codes[i];
    squares[begin / kInt8Block] = static_cast<std::uint32_t>(sum);
  }
}

// --- sums ------------------------------------------------------------------------
// In unsigned words: the same bits as signed ones, and a caller that changes an array while
// it is added gets a wrong sum, not undefined behaviour.

// to_fixed_point() of every lane.
VS_FN SumLanes to_fixed_point_lanes(DoubleLanes value) {
#if defined(__AVX512DQ__)
  return (SumLanes)_mm512_cvtpd_epi64((__m512d)value);  // rounds like the adder
#else
  const DoubleLanes high = value + 0x1.8p84;
  const DoubleLanes low = (value - (high - 0x1.8p84)) + 0x1.8p52;
  return (((SumLanes)high - bits_of_double(0x1.8p84)) << 32) +
         ((SumLanes)low - bits_of_double(0x1.8p52));
#endif
}

typedef std::int32_t MaskLanes __attribute__((vector_size(4 * kSumLanes)));

// Clears lanes of `within` whose value is beyond the stream's limit.
VS_FN SumLanes term_lanes(const Stream& stream, std::size_t begin, MaskLanes& within) {
  FloatLanes lanes;
  __builtin_memcpy(&lanes, stream.values + begin, sizeof lanes);
  within &= (FloatLanes)((MaskLanes)lanes & 0x7FFFFFFF) <= stream.limit;  // false for NaN
  return to_fixed_point_lanes(__builtin_convertvector(lanes, DoubleLanes) * stream.factor);
}

// Four vectors of sums at a time: enough that one addition need not wait for another, and
// few enough for the sixteen registers of the lower levels.
constexpr std::size_t kSumVectors = 4;
constexpr std::size_t kSumBlock = kSumVectors * kSumLanes;

VS_FN void add_block(const Stream* streams, std::size_t stream_count, std::size_t begin,
                     std::uint64_t* sums, MaskLanes& within) {
  SumLanes held[kSumVectors];
  __builtin_memcpy(held, sums + begin, sizeof held);
  for (std::size_t k = 0; k < stream_count; ++k)
    for (std::size_t v = 0; v < kSumVectors; ++v)
      held[v] += term_lanes(streams[k], begin + v * kSumLanes, within);
  __builtin_memcpy(sums + begin, held, sizeof held);
}

VS_FN bool add_singly(const Stream& stream, std::size_t i, std::uint64_t* sums) {
  const float value = stream.values[i];
  sums[i] += to_fixed_point(static_cast<double>(value) * stream.factor);
  return float_of_bits(bits_of_float(value) & 0x7FFFFFFFu) <= stream.limit;
}

bool add_f32_streams(const Stream* streams, std::size_t stream_count, std::size_t count,
                     std::uint64_t* sums) {
  MaskLanes within = ~MaskLanes{};
  std::size_t i = 0;
  for (; i + kSumBlock <= count; i += kSumBlock) add_block(streams, stream_count, i, sums, within);
  bool all_within = true;
  for (std::size_t lane = 0; lane < kSumLanes; ++lane) all_within &= within[lane] != 0;
  for (; i < count; ++i)
    for (std::size_t k = 0; k < stream_count; ++k) all_within &= add_singly(streams[k], i, sums);
  return all_within;
}

void add_f32(const WireFloat* values, std::size_t count, double factor, std::uint64_t* sums) {
  const Stream stream = {values, factor, kLargest};
  add_f32_streams(&stream, 1, count, sums);
}

void add_f64(const WireDouble* values, std::size_t count, double factor, std::uint64_t* sums) {
  for (std::size_t i = 0; i < count; ++i) sums[i] += to_fixed_point(values[i] * factor);
}

void add_int8(const std::int8_t* codes, const std::uint64_t* multipliers, std::size_t count,
              std::uint64_t* sums) {
  for (std::size_t begin = 0; begin < count; begin += kInt8Block) {
    const std::size_t length = count - begin < kInt8Block ? count - begin : kInt8Block;
    const std::uint64_t multiplier = multipliers[begin / kInt8Block];
    for (std::size_t i = begin; i < begin + length; ++i)
      sums[i] += static_cast<std::uint64_t>(std::int64_t{codes[i]}) * multiplier;
  }
}

// --- means -----------------------------------------------------------------------

// The sum as a double, the reciprocal and their product are each off by at most 2^-53 of
// themselves, so the quotient is off by less than 4 of its last places. Unless that reaches the
// point half-way between two numbers of the format, the exact quotient lies on the same side
// of it, and what is returned is exact although nothing was divided.
//
// Everything after the division is arithmetic on patterns without branches, which is what
// makes vectors of it.
VS_FN double round_quotient(std::uint64_t sum, const QuotientRule& rule) {
  const double quotient = from_fixed_point(sum) * rule.reciprocal;
  const std::uint64_t bits = bits_of_double(quotient);
  const std::uint64_t half = std::uint64_t{1} << (rule.cut - 1);
  const std::uint64_t kept = ~(2 * half - 1);
  const auto below_half = static_cast<std::int64_t>((bits & ~kept) - half);
  const auto magnitude = static_cast<std::int64_t>(bits & 0x7FFFFFFFFFFFFFFFu);
  const std::uint64_t close = (below_half > -5) & (below_half < 5);
  const std::uint64_t tiny = (magnitude < rule.smallest) & (magnitude != 0);
  constexpr std::uint64_t kNotANumber = 0x7FF8000000000000u;
  return double_of_bits(((bits + half) & kept) | ((0 - (close | tiny)) & kNotANumber));
}

void round_quotients(const std::uint64_t* sums, std::size_t count, const QuotientRule& rule,
                     float* rounded) {
  const QuotientRule held = rule;  // a copy that no store to `rounded` can change
  for (std::size_t i = 0; i < count; ++i)
    rounded[i] = static_cast<float>(round_quotient(sums[i], held));
}

constexpr CodecKernels kCodecKernels = {
    crc32c,       max_abs32,  max_abs64,       screen_f32,  screen_f64,  widen_f16,
    widen_bf16,   narrow_f16, narrow_bf16,     encode_int8, decode_int8, max_codes,
    square_codes, add_f32,    add_f32_streams, add_f64,     add_int8,    round_quotients,
};

}  // namespace
}  // namespace veilsum
