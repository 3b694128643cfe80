// f32, f16, bf16 and i64: one number per coordinate, no scales.
#include <algorithm>
#include <cstdint>

#include "codec/format.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

constexpr std::size_t kScreened = 4096;  // values looked at between two decisions

class Float32Format final : public CodecFormat {
 public:
  SectionSizes sizes(std::uint16_t, std::uint64_t count) const override { return {0, 4 * count}; }

  void check(const ChunkView& chunk) const override {
    const auto* values = reinterpret_cast<const WireFloat*>(chunk.codes.data());
    if (kernels().codec.max_abs32(values, chunk.header.count) < 0x7F800000) return;
    std::size_t at = 0;
    while (kernels().codec.max_abs32(values + at, 1) < 0x7F800000) ++at;
    refuse_value(chunk, at, "is not finite");
  }
};

// Either half format: `exponent` is its mask of exponent bits, all of them set in values
// that are not finite.
class HalfFormat final : public CodecFormat {
 public:
  constexpr explicit HalfFormat(std::uint16_t exponent) : exponent_(exponent) {}

  SectionSizes sizes(std::uint16_t, std::uint64_t count) const override { return {0, 2 * count}; }

  void check(const ChunkView& chunk) const override {
    const auto* values = reinterpret_cast<const WireHalf*>(chunk.codes.data());
    for (std::size_t begin = 0; begin < chunk.header.count; begin += kScreened) {
      const std::size_t end = std::min<std::size_t>(chunk.header.count, begin + kScreened);
      unsigned found = 0;  // without an early exit the loop is one of vectors
      for (std::size_t i = begin; i < end; ++i) found |= (values[i] & exponent_) == exponent_;
      if (found == 0) continue;
      std::size_t at = begin;
      while ((values[at] & exponent_) != exponent_) ++at;
      refuse_value(chunk, at, "is not finite");
    }
  }

 private:
  std::uint16_t exponent_;
};

class Integer64Format final : public CodecFormat {
 public:
  SectionSizes sizes(std::uint16_t, std::uint64_t count) const override { return {0, 8 * count}; }
  void check(const ChunkView&) const override {}  // every i64 is a value
};

constexpr Float32Format kFloat32;
constexpr HalfFormat kFloat16(0x7C00);
constexpr HalfFormat kBrain16(0x7F80);
constexpr Integer64Format kInteger64;

}  // namespace

const CodecFormat& f32_format() { return kFloat32; }
const CodecFormat& f16_format() { return kFloat16; }
const CodecFormat& bf16_format() { return kBrain16; }
const CodecFormat& i64_format() { return kInteger64; }

}  // namespace veilsum
