// The loops over ring words, as one CPU level provides them. Nothing is checked here:
// arguments were checked one layer up.
#pragma once

#include <cstddef>
#include <cstdint>

#include "element/philox.h"
#include "element/ring.h"

namespace veilsum {

// Blocks of keystream, as one generator makes them.
struct KeystreamRange {
  ChaChaNonce nonce;
  std::uint32_t first_block;
  std::size_t blocks;
};

// Writes `range.blocks` blocks, and up to kBlockSlack more. `key` is what the generator wants:
// the 32 bytes of a ChaCha20 key, the kAesScheduleBytes of an AES schedule.
using WriteKeystream = void (*)(const unsigned char* key, const KeystreamRange& range,
                                unsigned char* out);

// One key's share of a mask sum.
struct MaskTerm {
  const unsigned char* key;  // as WriteKeystream wants it
  bool subtract;
};

struct MaskTerms {
  WriteKeystream keystream;
  const MaskTerm* term;
  std::size_t count;
};

// Elements [first, first + count) of one stream.
struct MaskRange {
  std::uint32_t stream;
  unsigned bits;
  std::uint64_t first;
  std::size_t count;
};

// Tiles whose keystream is made at once: 4096 elements, so that keystream and
// accumulator stay in the first-level cache while all keys pass over them, and a
// whole number of full vectors of blocks for every even width.
inline constexpr std::size_t kRunTiles = 8;
// Bytes behind the last field that a loop may read.
inline constexpr std::size_t kReadSlack = 64;
// Blocks that a generator may write beyond those asked for: it makes whole vectors of them.
inline constexpr std::size_t kBlockSlack = 16;
// Keystream of a run, and slack.
inline constexpr std::size_t kMaskScratchBytes =
    (kRunTiles * kMaxRingBits + kBlockSlack) * kBlockBytes + kReadSlack;

// Several strings of fields of one width. kReadSlack bytes behind each must be readable.
struct PackedStreams {
  const unsigned char* const* fields;
  std::size_t count;
  unsigned bits;
};

// How values of one tensor become steps.
struct StepRule {
  double gain;   // steps per unit
  double limit;  // values are clamped to +-limit first
  bool stochastic;
  PhiloxKey key;
  std::uint32_t group;
};

// What the values were like. The step of one that is not finite is meaningless; an infinity
// is beyond the limit as well.
struct StepCount {
  std::size_t not_finite;
  std::size_t beyond_limit;
};

struct RingKernels {
  WriteKeystream chacha20;
  // Without AES instructions, which are no part of any level (aes_kernels.h has those).
  WriteKeystream aes256;

  // accumulator[i] += sum over terms of +-mask element (range.first + i). Bits above
  // range.bits become scratch. `scratch` has kMaskScratchBytes, 64-byte aligned; it is
  // left full of keystream.
  void (*add_masks32)(const MaskTerms& terms, const MaskRange& range, unsigned char* scratch,
                      std::uint32_t* accumulator);
  void (*add_masks64)(const MaskTerms& terms, const MaskRange& range, unsigned char* scratch,
                      std::uint64_t* accumulator);

  // accumulator[i] += field i of every stream.
  void (*add_packed32)(const PackedStreams& streams, std::size_t count, std::uint32_t* accumulator);
  void (*add_packed64)(const PackedStreams& streams, std::size_t count, std::uint64_t* accumulator);

  // Writes exactly packed_size(count, bits) bytes; the padding bits are zero.
  void (*pack32)(const std::uint32_t* words, std::size_t count, unsigned bits,
                 unsigned char* packed);
  void (*pack64)(const std::uint64_t* words, std::size_t count, unsigned bits,
                 unsigned char* packed);

  // steps[i] = field i, a signed integer, rounded to a double. kReadSlack bytes behind the fields
  // must be readable.
  void (*unpack_steps)(const unsigned char* fields, std::size_t count, unsigned bits,
                       double* steps);
  // values[i] = steps[i] / scale, rounded to a double and then to a float.
  void (*divide_steps)(const double* steps, std::size_t count, double scale, float* values);

  // words[i] = step of the value at coordinate first + i, two's complement. `values` are
  // floats or doubles at any address. `first` is a multiple of 4: uniforms come in fours.
  StepCount (*steps32_f32)(const void* values, std::size_t count, std::uint64_t first,
                           const StepRule& rule, std::uint32_t* words);
  StepCount (*steps64_f32)(const void* values, std::size_t count, std::uint64_t first,
                           const StepRule& rule, std::uint64_t* words);
  StepCount (*steps32_f64)(const void* values, std::size_t count, std::uint64_t first,
                           const StepRule& rule, std::uint32_t* words);
  StepCount (*steps64_f64)(const void* values, std::size_t count, std::uint64_t first,
                           const StepRule& rule, std::uint64_t* words);
};

}  // namespace veilsum
