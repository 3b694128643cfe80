#include "codec/codecs.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>

#include "base/error.h"

namespace veilsum {
namespace {

// Above the family a number has 3 bits for the block, or how sparse a codec is, and 2 for the
// scale; 0 is the usual one, and 3 of the scale no scale at all.
constexpr unsigned kBlockShift = 9;
constexpr unsigned kScaleShift = 12;
constexpr std::uint16_t kFamilyMask = (1u << kBlockShift) - 1;

// What the codes 1 to 7 of those 3 bits stand for, and the letter in front of it in names.
struct Unit {
  char letter;
  std::array<unsigned, 7> choices;
};
constexpr Unit kBlocks = {'b', {32, 64, 128, 256, 512, 1024, 2048}};
constexpr Unit kSparsities = {'d', {2, 4, 10, 20, 50, 200, 1000}};

struct Family {
  std::string_view name;
  std::uint16_t number;
  unsigned block;  // the usual one; 0: no blocks
  unsigned least_block;
  unsigned most_block;
  ScaleFormat scales;  // the usual one
  bool raw;            // whether codes may also go without scales
  const Unit* unit = &kBlocks;
};

constexpr Family without_blocks(std::string_view name, std::uint16_t number) {
  return {name, number, 0, 0, 0, ScaleFormat::none, false};
}

constexpr std::array kFamilies = {
    without_blocks("f32", kCodecF32),
    without_blocks("f16", kCodecF16),
    without_blocks("bf16", kCodecBf16),
    Family{"int8", kCodecInt8, 64, 32, 256, ScaleFormat::f32, false},
    without_blocks("i64", kCodecI64),
    Family{"int4", kCodecInt4, 64, 32, 64, ScaleFormat::f16, false},
    Family{"nf4", kCodecNf4, 64, 32, 64, ScaleFormat::f16, false},
    Family{"fp4", kCodecFp4, 64, 32, 64, ScaleFormat::f16, false},
    Family{"fp8_e4m3", kCodecFp8E4M3, 64, 32, 256, ScaleFormat::f32, true},
    Family{"fp8_e5m2", kCodecFp8E5M2, 64, 32, 256, ScaleFormat::f32, true},
    Family{"sign", kCodecSign, 64, 64, 1024, ScaleFormat::f16, false},
    Family{"topk", kCodecTopK, 100, 2, 1000, ScaleFormat::f32, false, &kSparsities},
    without_blocks("eden1", kCodecEden | 1),
    without_blocks("eden2", kCodecEden | 2),
    without_blocks("eden3", kCodecEden | 3),
    without_blocks("eden4", kCodecEden | 4),
};
constexpr std::string_view kRingPrefix = "ring";

std::string known_names() {
  std::string names = "known codecs: ";
  for (const Family& family : kFamilies) names += std::string(family.name) + ", ";
  return names + "ring1 to ring64";
}

// A codec's family and what was chosen of it.
struct Choice {
  const Family* family;
  unsigned block;
  ScaleFormat scales;
};

// Which of the unit's choices a number is, from 1; 0 if it is none.
unsigned code_of(const Unit& unit, unsigned choice) {
  const auto found = std::find(unit.choices.begin(), unit.choices.end(), choice);
  if (found == unit.choices.end()) return 0;
  return static_cast<unsigned>(found - unit.choices.begin()) + 1;
}

bool is_allowed(const Choice& choice) {
  const Family& family = *choice.family;
  if (choice.scales != family.scales && choice.scales == ScaleFormat::none)
    return family.raw && choice.block == 0;
  const bool block = choice.block == family.block ||
                     (choice.block >= family.least_block && choice.block <= family.most_block &&
                      code_of(*family.unit, choice.block) != 0);
  return block && (choice.scales == family.scales || family.block != 0);
}

constexpr unsigned kNoScales = 3;

unsigned scale_code(ScaleFormat format) {
  return format == ScaleFormat::none ? kNoScales : static_cast<unsigned>(format);
}

std::uint16_t number_of(const Choice& choice) {
  const Family& family = *choice.family;
  unsigned number = family.number;
  if (choice.block != family.block) number |= code_of(*family.unit, choice.block) << kBlockShift;
  if (choice.scales != family.scales) number |= scale_code(choice.scales) << kScaleShift;
  return static_cast<std::uint16_t>(number);
}

const Family* find_family(std::uint16_t number) {
  for (const Family& family : kFamilies)
    if (family.number == number) return &family;
  return nullptr;
}

// None for numbers that name no codec, or name one in another than the shortest way.
std::optional<Choice> find_choice(std::uint16_t codec) {
  const Family* family = find_family(codec & kFamilyMask);
  if (family == nullptr) return std::nullopt;
  const unsigned block = codec >> kBlockShift & 7;
  const unsigned scales = codec >> kScaleShift;
  Choice choice = {family, block == 0 ? family->block : family->unit->choices[block - 1],
                   family->scales};
  if (scales == kNoScales) choice = {family, 0, ScaleFormat::none};
  if (scales == 1 || scales == 2) choice.scales = static_cast<ScaleFormat>(scales);
  if (!is_allowed(choice) || number_of(choice) != codec) return std::nullopt;
  return choice;
}

std::optional<unsigned> parse_number(std::string_view digits) {
  unsigned number = 0;
  const auto [end, error] = std::from_chars(digits.begin(), digits.end(), number);
  const bool canonical = error == std::errc() && end == digits.end() && digits.front() != '0';
  return canonical ? std::optional(number) : std::nullopt;
}

bool parse_choice(std::string_view word, Choice& choice) {
  if (word == "f32" || word == "f16") {
    choice.scales = word == "f32" ? ScaleFormat::f32 : ScaleFormat::f16;
    return true;
  }
  if (word == "raw") {
    choice.block = 0;
    choice.scales = ScaleFormat::none;
    return true;
  }
  if (!word.starts_with(choice.family->unit->letter)) return false;
  const auto block = parse_number(word.substr(1));
  choice.block = block.value_or(0);
  return block.has_value();
}

std::optional<std::uint16_t> parse_ring(std::string_view name) {
  if (!name.starts_with(kRingPrefix)) return std::nullopt;
  const auto bits = parse_number(name.substr(kRingPrefix.size()));
  if (!bits || *bits > 64) return std::nullopt;
  return static_cast<std::uint16_t>(kCodecRing | *bits);
}

// Only the name that codec_name() gives is one.
std::optional<std::uint16_t> parse_family(std::string_view name) {
  std::string_view rest = name;
  const std::string_view first = rest.substr(0, rest.find('/'));
  Choice choice = {nullptr, 0, ScaleFormat::none};
  for (const Family& family : kFamilies)
    if (family.name == first) choice = {&family, family.block, family.scales};
  if (choice.family == nullptr) return std::nullopt;
  while (rest.find('/') != std::string_view::npos) {
    rest.remove_prefix(rest.find('/') + 1);
    if (!parse_choice(rest.substr(0, rest.find('/')), choice)) return std::nullopt;
  }
  if (!is_allowed(choice) || codec_name(number_of(choice)) != name) return std::nullopt;
  return number_of(choice);
}

Choice choice_of(std::uint16_t codec) {
  if (const auto choice = find_choice(codec)) return *choice;
  throw ConfigError("unknown codec number " + std::to_string(codec), known_names());
}

}  // namespace

unsigned ring_bits(std::uint16_t codec) {
  const unsigned bits = codec ^ kCodecRing;
  return bits >= 1 && bits <= 64 ? bits : 0;
}

std::uint16_t codec_family(std::uint16_t codec) {
  return ring_bits(codec) != 0 ? codec : codec & kFamilyMask;
}

unsigned eden_bits(std::uint16_t codec) {
  const unsigned bits = codec ^ kCodecEden;
  return bits >= 1 && bits <= 4 ? bits : 0;
}

unsigned codec_block(std::uint16_t codec) {
  if (ring_bits(codec) != 0) return 0;
  const Choice choice = choice_of(codec);
  return choice.family->unit == &kBlocks ? choice.block : 0;
}

unsigned codec_sparsity(std::uint16_t codec) {
  if (ring_bits(codec) != 0) return 0;
  const Choice choice = choice_of(codec);
  return choice.family->unit == &kSparsities ? choice.block : 0;
}

ScaleFormat codec_scales(std::uint16_t codec) {
  return ring_bits(codec) != 0 ? ScaleFormat::none : choice_of(codec).scales;
}

std::size_t scale_bytes(ScaleFormat format) {
  return format == ScaleFormat::f32 ? 4 : format == ScaleFormat::f16 ? 2 : 0;
}

std::uint16_t codec_number(std::string_view name) {
  if (const auto number = parse_family(name)) return *number;
  if (const auto number = parse_ring(name)) return *number;
  throw ConfigError("unknown codec '" + std::string(name) + "'", known_names());
}

std::string codec_name(std::uint16_t codec) {
  if (const unsigned bits = ring_bits(codec))
    return std::string(kRingPrefix) + std::to_string(bits);
  const Choice choice = choice_of(codec);
  std::string name(choice.family->name);
  if (choice.scales != choice.family->scales && choice.scales == ScaleFormat::none)
    return name + "/raw";
  if (choice.block != choice.family->block)
    name += std::string("/") + choice.family->unit->letter + std::to_string(choice.block);
  if (choice.scales != choice.family->scales)
    name += choice.scales == ScaleFormat::f32 ? "/f32" : "/f16";
  return name;
}

void require_float_codec(std::uint16_t codec) {
  const std::string name = codec_name(codec);
  if (codec == kCodecI64)
    throw ConfigError("codec " + name + " carries integer tensors only",
                      "integer tensors always travel as i64; choose a codec for the others");
}

}  // namespace veilsum
