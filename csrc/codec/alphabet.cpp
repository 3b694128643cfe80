#include "codec/alphabet.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "base/error.h"
#include "codec/codecs.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

constexpr std::size_t kScreened = 4096;  // values widened at once

[[noreturn]] void refuse(const ChunkView& chunk, std::size_t value, const std::string& what) {
  throw DecodeError("coordinate " + std::to_string(chunk.header.first + value) + " of group " +
                    std::to_string(chunk.header.group) + " " + what);
}

void check_f32(const ChunkView& chunk) {
  const auto* values = reinterpret_cast<const WireFloat*>(chunk.codes.data());
  if (kernels().codec.max_abs32(values, chunk.header.count) < 0x7F800000) return;
  std::size_t at = 0;
  while (kernels().codec.max_abs32(values + at, 1) < 0x7F800000) ++at;
  refuse(chunk, at, "is not finite");
}

// Either half format: `exponent` is its mask of exponent bits, all of them set in values
// that are not finite.
void check_half(const ChunkView& chunk, std::uint16_t exponent) {
  const auto* values = reinterpret_cast<const WireHalf*>(chunk.codes.data());
  for (std::size_t begin = 0; begin < chunk.header.count; begin += kScreened) {
    const std::size_t end = std::min<std::size_t>(chunk.header.count, begin + kScreened);
    unsigned found = 0;  // without an early exit the loop is one of vectors
    for (std::size_t i = begin; i < end; ++i) found |= (values[i] & exponent) == exponent;
    if (found == 0) continue;
    std::size_t at = begin;
    while ((values[at] & exponent) != exponent) ++at;
    refuse(chunk, at, "is not finite");
  }
}

// A scale that 127 carries beyond the largest float would decode to infinity. Subnormal
// scales are refused because some CPUs take a hundred times longer over them.
bool is_legal_scale(float scale) {
  if (scale == 0) return !std::signbit(scale);
  return scale >= 0x1p-126f && 127.0 * double{scale} <= 0x1.fffffep127;  // false for NaN
}

void check_block(const ChunkView& chunk, std::size_t at, float scale, unsigned largest_code) {
  if (!is_legal_scale(scale))
    refuse(chunk, at, "has a block scale that is negative, not finite, subnormal or too large");
  if (largest_code > 127) refuse(chunk, at, "has an int8 code -128 in its block");
  if (scale == 0 && largest_code != 0) refuse(chunk, at, "has codes but no scale in its block");
}

void check_int8(const ChunkView& chunk) {
  const auto* scales = reinterpret_cast<const WireFloat*>(chunk.scales.data());
  const auto* codes = reinterpret_cast<const std::int8_t*>(chunk.codes.data());
  std::array<std::uint8_t, kScreened / kInt8Block> largest;
  for (std::size_t begin = 0; begin < chunk.codes.size(); begin += kScreened) {
    const std::size_t count = std::min(kScreened, chunk.codes.size() - begin);
    kernels().codec.max_codes(codes + begin, count, largest.data());
    for (std::size_t at = begin; at < begin + count; at += kInt8Block)
      check_block(chunk, at, scales[at / kInt8Block], largest[(at - begin) / kInt8Block]);
  }
}

void check_ring(const ChunkView& chunk, unsigned bits) {
  const unsigned used = static_cast<unsigned>(chunk.header.count % 8 * bits % 8);
  if (used != 0 && std::to_integer<unsigned>(chunk.codes.back()) >> used != 0)
    throw DecodeError("a padding bit after the chunk's last ring word is set");
}

}  // namespace

void check_alphabet(const ChunkView& chunk) {
  if (const unsigned bits = ring_bits(chunk.header.codec)) return check_ring(chunk, bits);
  switch (chunk.header.codec) {
    case kCodecF32:
      return check_f32(chunk);
    case kCodecF16:
      return check_half(chunk, 0x7C00);
    case kCodecBf16:
      return check_half(chunk, 0x7F80);
    case kCodecInt8:
      return check_int8(chunk);
    default:
      return;  // every i64 is a value
  }
}

}  // namespace veilsum
