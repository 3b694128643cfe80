#include "codec/codecs.h"

#include <array>
#include <charconv>

#include "base/error.h"

namespace veilsum {
namespace {

struct Named {
  std::string_view name;
  std::uint16_t number;
};

constexpr std::array<Named, 5> kPlainCodecs = {{{"f32", kCodecF32},
                                                {"f16", kCodecF16},
                                                {"bf16", kCodecBf16},
                                                {"int8", kCodecInt8},
                                                {"i64", kCodecI64}}};
constexpr std::string_view kRingPrefix = "ring";
constexpr const char* kKnown = "known codecs: f32, f16, bf16, int8, i64, ring1 to ring64";

// 0 unless `digits` is a number from 1 to 64 without leading zeros.
unsigned parse_bits(std::string_view digits) {
  unsigned bits = 0;
  const auto [end, error] = std::from_chars(digits.begin(), digits.end(), bits);
  const bool canonical = error == std::errc() && end == digits.end() && digits.front() != '0';
  return canonical && bits <= 64 ? bits : 0;
}

}  // namespace

unsigned ring_bits(std::uint16_t codec) {
  const unsigned bits = codec ^ kCodecRing;
  return bits >= 1 && bits <= 64 ? bits : 0;
}

std::uint16_t codec_number(std::string_view name) {
  for (const Named& codec : kPlainCodecs)
    if (codec.name == name) return codec.number;
  if (name.starts_with(kRingPrefix) && name.size() > kRingPrefix.size())
    if (const unsigned bits = parse_bits(name.substr(kRingPrefix.size())))
      return static_cast<std::uint16_t>(kCodecRing | bits);
  throw ConfigError("unknown codec '" + std::string(name) + "'", kKnown);
}

std::string codec_name(std::uint16_t codec) {
  for (const Named& known : kPlainCodecs)
    if (known.number == codec) return std::string(known.name);
  if (const unsigned bits = ring_bits(codec))
    return std::string(kRingPrefix) + std::to_string(bits);
  throw ConfigError("unknown codec number " + std::to_string(codec), kKnown);
}

void require_float_codec(std::uint16_t codec) {
  const std::string name = codec_name(codec);
  if (codec == kCodecI64)
    throw ConfigError("codec " + name + " carries integer tensors only",
                      "integer tensors always travel as i64; choose a codec for the others");
}

}  // namespace veilsum
