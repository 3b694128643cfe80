// Codec numbers and names.
//
// A number says all that the size of a chunk depends on: the family, for codecs whose
// coordinates share scales in blocks also the block and the format of a scale, and for sparse
// ones how many coordinates are kept. What else gives codes their meaning (the step of a ring
// codec, a rotation) is in the plan.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace veilsum {

inline constexpr std::uint16_t kCodecF32 = 1;
inline constexpr std::uint16_t kCodecF16 = 2;
inline constexpr std::uint16_t kCodecBf16 = 3;
inline constexpr std::uint16_t kCodecInt8 = 4;
inline constexpr std::uint16_t kCodecI64 = 5;
inline constexpr std::uint16_t kCodecInt4 = 6;
inline constexpr std::uint16_t kCodecNf4 = 7;
inline constexpr std::uint16_t kCodecFp4 = 8;
inline constexpr std::uint16_t kCodecFp8E4M3 = 9;
inline constexpr std::uint16_t kCodecFp8E5M2 = 10;
inline constexpr std::uint16_t kCodecSign = 11;
inline constexpr std::uint16_t kCodecTopK = 12;
inline constexpr std::uint16_t kCodecEden = 0x20;   // | bits of a code, 1 .. 4
inline constexpr std::uint16_t kCodecRing = 0x100;  // | bits of a word, 1 .. 64

enum class ScaleFormat : std::uint8_t { none, f32, f16 };

// Bits of a ring codec's words; 0 for every other codec.
unsigned ring_bits(std::uint16_t codec);

// The number without the choice of block and scale: kCodecInt8 for every int8 codec.
std::uint16_t codec_family(std::uint16_t codec);

// Bits of an eden codec's codes; 0 for every other codec.
unsigned eden_bits(std::uint16_t codec);

// Coordinates that share a scale; 0 for codecs without such blocks. The codec must be known.
unsigned codec_block(std::uint16_t codec);

// Of how many coordinates a sparse codec keeps one; 0 for every other codec, which keeps all.
// The codec must be known.
unsigned codec_sparsity(std::uint16_t codec);

// How a scale (of a sparse codec: a value) is written. The codec must be known.
ScaleFormat codec_scales(std::uint16_t codec);
std::size_t scale_bytes(ScaleFormat format);

// "f32" -> 1, "int8" -> 4, "int8/b128/f16" -> 0x2604, "ring22" -> 0x116: the family, then what
// differs from its usual block and scale; "raw" stands for no scale, hence no block. Throws
// ConfigError if there is no such codec.
std::uint16_t codec_number(std::string_view name);
std::string codec_name(std::uint16_t codec);

// Throws ConfigError unless the codec can carry floating-point tensors in the clear.
void require_float_codec(std::uint16_t codec);

}  // namespace veilsum
