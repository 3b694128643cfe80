// The loops over codes that share scales in blocks, as one CPU level provides them. Nothing is
// checked here: arguments were checked one layer up. Every level gives the same bits.
//
// A block is a power of two from 32 on; the last one may be shorter. `scales` has one float per
// block, wide enough for any codec's wire format.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/codec_kernels.h"

namespace veilsum {

// Coordinates that are coded alike: how many, and how many share a scale.
struct BlockRange {
  std::size_t count;
  unsigned block;
};

// Which code is nearest. Code k's rank is the number of bounds below the quotient.
struct NearestRule {
  // Upwards. A bound that is itself the middle between two codes belongs to the lower one.
  float bounds[15];
  bool sign_apart;  // ranks are those of magnitudes, and the code's bit 3 is the sign
};

// What sums take for each code of a block, each product as exact as a double is:
// multiples[code] * round(unit * scale * factor), or round(values[code] * scale * factor) if the
// codes have no unit.
struct TermRule {
  double unit;  // 0: none
  double values[16];
  std::uint64_t multiples[16];  // of the unit
};

// What one of several updates has for the same coordinates: codes of four bits, a scale per block
// and how much the update counts.
struct NibbleStream {
  const unsigned char* packed;
  const float* scales;
  double factor;
};

// The same of bits, with a term per block.
struct SignStream {
  const unsigned char* bits;
  const std::uint64_t* terms;
};

// One of the two 8-bit floats.
enum class Fp8 : std::uint8_t { e4m3, e5m2 };

struct BlockKernels {
  // Largest |value| of each block.
  void (*max_blocks)(const float* values, const BlockRange& range, float* largest);
  // Sum of the |value| of each block, in double: sixteen sums of every sixteenth value, then
  // pairs of sums eight, four, two and one apart.
  void (*sum_blocks)(const float* values, const BlockRange& range, double* sums);

  // Steps of at most `limit` to either side; codes of a block without a scale are 0. `first` is
  // the coordinate of values[0], a multiple of 64.
  void (*encode_steps)(const float* values, const BlockRange& range, std::uint64_t first,
                       const CodeRule& rule, const float* scales, int limit, std::int8_t* codes);

  // sums[i] += codes[i] * multipliers[block].
  void (*add_steps)(const std::int8_t* codes, const BlockRange& range,
                    const std::uint64_t* multipliers, std::uint64_t* sums);

  // Four bits per code: two codes per byte, the first in the lower half. The half behind an odd
  // last code is 0.
  void (*pack_nibbles)(const std::int8_t* codes, std::size_t count, unsigned char* packed);
  // Quotients to codes, one per byte. Codes of a block without a scale are `zero`.
  void (*encode_nearest)(const float* values, const BlockRange& range, const NearestRule& rule,
                         const float* scales, std::int8_t zero, std::int8_t* codes);
  // value = table[code] * scale, rounded once.
  void (*decode_nibbles)(const unsigned char* packed, const BlockRange& range, const float* table,
                         const float* scales, float* values);
  // sums[i] += the term of every stream's code in its block. Sums are in registers meanwhile.
  void (*add_nibble_streams)(const NibbleStream* streams, std::size_t stream_count,
                             const BlockRange& range, const TermRule& rule, std::uint64_t* sums);
  // Largest rank of the codes of each block, ranks being by code.
  void (*max_ranks)(const unsigned char* packed, const BlockRange& range, const std::uint8_t* rank,
                    std::uint8_t* largest);

  // Quotients to 8-bit floats, nothing beyond `most`; codes of a block without a scale are 0.
  void (*encode_fp8)(Fp8 format, const float* values, const BlockRange& range, const float* scales,
                     std::uint8_t most, std::uint8_t* codes);
  // value = code * scale, rounded once.
  void (*decode_fp8)(Fp8 format, const std::uint8_t* codes, const BlockRange& range,
                     const float* scales, float* values);
  // Largest pattern of each block, without its sign.
  void (*max_patterns)(const std::uint8_t* codes, const BlockRange& range, std::uint8_t* largest);

  // One bit per value, set if it is below 0 and its block has a scale; the first in the lowest
  // bit of the first byte, zeros behind the last.
  void (*encode_signs)(const float* values, const BlockRange& range, const float* scales,
                       unsigned char* bits);
  // value = scale, or its opposite where the bit is set.
  void (*decode_signs)(const unsigned char* bits, const BlockRange& range, const float* scales,
                       float* values);
  // sums[i] += every stream's terms[block], or its opposite where the stream's bit is set.
  void (*add_sign_streams)(const SignStream* streams, std::size_t stream_count,
                           const BlockRange& range, std::uint64_t* sums);
  // terms[block] = round(scales[block] * factor), 0 where that is beyond 2^62.
  void (*scale_terms)(const float* scales, std::size_t blocks, double factor, std::uint64_t* terms);
};

}  // namespace veilsum
