// int8: a signed byte per coordinate, a scale per block.
#include <algorithm>
#include <array>
#include <cstdint>

#include "codec/format.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

constexpr std::size_t kScreened = 4096;  // codes looked at between two decisions

void check_block(const ChunkView& chunk, std::size_t at, float scale, unsigned largest_code) {
  if (!is_legal_scale(scale, 127))
    refuse_value(chunk, at,
                 "has a block scale that is negative, not finite, subnormal or too large");
  if (largest_code > 127) refuse_value(chunk, at, "has an int8 code -128 in its block");
  if (scale == 0 && largest_code != 0)
    refuse_value(chunk, at, "has codes but no scale in its block");
}

class Int8Format final : public CodecFormat {
 public:
  SectionSizes sizes(std::uint16_t, std::uint64_t count) const override {
    return {4 * block_count(count, kInt8Block), count};
  }

  void check(const ChunkView& chunk) const override {
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
};

constexpr Int8Format kInt8;

}  // namespace

const CodecFormat& int8_format() { return kInt8; }

}  // namespace veilsum
