// Codec numbers and names.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace veilsum {

inline constexpr std::uint16_t kCodecF32 = 1;
inline constexpr std::uint16_t kCodecF16 = 2;
inline constexpr std::uint16_t kCodecBf16 = 3;
inline constexpr std::uint16_t kCodecInt8 = 4;
inline constexpr std::uint16_t kCodecI64 = 5;
inline constexpr std::uint16_t kCodecRing = 0x100;  // | bits of a word, 1 .. 64

// Bits of a ring codec's words; 0 for every other codec.
unsigned ring_bits(std::uint16_t codec);

// "f32" -> 1, ..., "ring22" -> 0x116. Throws ConfigError if there is no such codec.
std::uint16_t codec_number(std::string_view name);
std::string codec_name(std::uint16_t codec);

// Throws ConfigError unless the codec can carry floating-point tensors in the clear.
void require_float_codec(std::uint16_t codec);

}  // namespace veilsum
