// The loops over encoded values, as one CPU level provides them. Nothing is checked
// here: arguments were checked one layer up. Every level gives the same bits.
//
// Values inside chunks and spool files may lie at any address, hence the Wire types.
#pragma once

#include <cstddef>
#include <cstdint>

#include "element/philox.h"
#include "element/quotient.h"

namespace veilsum {

// Little-endian values at any address.
typedef float WireFloat __attribute__((aligned(1), may_alias));
typedef double WireDouble __attribute__((aligned(1), may_alias));
typedef std::uint16_t WireHalf __attribute__((aligned(1), may_alias));  // f16 or bf16 bits

inline constexpr std::size_t kInt8Block = 64;  // codes that share one scale
inline constexpr std::size_t kSquareLanes = 16;

// How values become int8 codes.
struct CodeRule {
  bool stochastic;  // else to nearest, ties to even
  PhiloxKey key;
  std::uint32_t group;
  bool least_error;  // eden: scales for the smallest error, not for being right on average
};

// One of several updates that are summed in one pass.
struct Stream {
  const WireFloat* values;
  double factor;
  float limit;  // that no |value| should be beyond
};

// The same for f16 or bf16 values that nobody changes.
struct HalfStream {
  const WireHalf* values;
  double factor;
};

// The same for int8 codes.
struct CodeStream {
  const std::int8_t* codes;
  const std::uint64_t* multipliers;  // one per kInt8Block codes
};

struct CodecKernels {
  // CRC-32C (Castagnoli) continued over `size` bytes; the first call takes 0.
  std::uint32_t (*crc32c)(std::uint32_t crc, const unsigned char* bytes, std::size_t size);

  // Largest bit pattern of |value|. Patterns order like magnitudes, and every pattern that
  // is not finite is above every one that is.
  std::uint32_t (*max_abs32)(const WireFloat* values, std::size_t count);
  std::uint64_t (*max_abs64)(const WireDouble* values, std::size_t count);
  std::uint32_t (*max_abs16)(const WireHalf* values, std::size_t count);  // f16 or bf16
  // The same into `largest`, and the sum of squares: value i goes to lane i % kSquareLanes,
  // lanes are added in halves, all in double.
  double (*screen_f32)(const WireFloat* values, std::size_t count, std::uint32_t* largest);
  double (*screen_f64)(const WireDouble* values, std::size_t count, std::uint64_t* largest);

  // Exact.
  void (*widen_f16)(const WireHalf* values, std::size_t count, float* widened);
  void (*widen_bf16)(const WireHalf* values, std::size_t count, float* widened);
  // To nearest, ties to even; infinite if the value does not fit.
  void (*narrow_f16)(const WireFloat* values, std::size_t count, WireHalf* narrowed);
  void (*narrow_bf16)(const WireFloat* values, std::size_t count, WireHalf* narrowed);

  // Value = code * scale, rounded once.
  void (*decode_int8)(const std::int8_t* codes, const WireFloat* scales, std::size_t count,
                      float* values);
  // Largest |code| of each block; 128 if a code is -128.
  void (*max_codes)(const std::int8_t* codes, std::size_t count, std::uint8_t* largest);
  // Sum of the squares of each block's codes.
  void (*square_codes)(const std::int8_t* codes, std::size_t count, std::uint32_t* squares);

  // Sums are in two's complement.
  // sums[i] += round(values[i] * factor), ties to even; |values[i] * factor| < 2^62.
  void (*add_f32)(const WireFloat* values, std::size_t count, double factor, std::uint64_t* sums);
  // The same for several updates at once, whose sums stay in the cache meanwhile. False if a
  // value is beyond its stream's limit, or NaN: the sums are then worthless.
  bool (*add_f32_streams)(const Stream* streams, std::size_t stream_count, std::size_t count,
                          std::uint64_t* sums);
  void (*add_f16_streams)(const HalfStream* streams, std::size_t stream_count, std::size_t count,
                          std::uint64_t* sums);
  void (*add_bf16_streams)(const HalfStream* streams, std::size_t stream_count, std::size_t count,
                           std::uint64_t* sums);
  void (*add_f64)(const WireDouble* values, std::size_t count, double factor, std::uint64_t* sums);
  // sums[i] += codes[i] * multipliers[i / kInt8Block].
  void (*add_int8)(const std::int8_t* codes, const std::uint64_t* multipliers, std::size_t count,
                   std::uint64_t* sums);
  void (*add_int8_streams)(const CodeStream* streams, std::size_t stream_count, std::size_t count,
                           std::uint64_t* sums);

  // rounded[i] = sums[i] / divisor, rounded as if the quotient were exact. False if some of
  // them are below the format's normal numbers: nothing is then said about any.
  bool (*round_quotients)(const std::uint64_t* sums, std::size_t count, const QuotientRule& rule,
                          WireFloat* rounded);
};

}  // namespace veilsum
