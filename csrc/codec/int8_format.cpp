// int8: a signed byte per coordinate, a scale per block.
#include <algorithm>
#include <array>
#include <cstdint>

#include "codec/block_scales.h"
#include "codec/format.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

constexpr std::size_t kScreened = 4096;  // codes looked at between two decisions

void check_codes(const ChunkView& chunk, const std::int8_t* codes) {
  std::array<std::uint8_t, kScreened / kInt8Block> largest;
  for (std::size_t begin = 0; begin < chunk.codes.size(); begin += kScreened) {
    const std::size_t count = std::min(kScreened, chunk.codes.size() - begin);
    kernels().codec.max_codes(codes + begin, count, largest.data());
    for (std::size_t at = begin; at < begin + count; at += kInt8Block)
      if (largest[(at - begin) / kInt8Block] > 127)
        refuse_value(chunk, at, "has an int8 code -128 in its block");
  }
}

class Int8Format final : public CodecFormat {
 public:
  SectionSizes sizes(std::uint16_t codec, std::uint64_t count) const override {
    return {scale_section(codec, count), count};
  }

  void check(const ChunkView& chunk) const override {
    const auto* codes = reinterpret_cast<const std::int8_t*>(chunk.codes.data());
    check_scales(chunk, {1, 127});
    check_codes(chunk, codes);
    for_each_zero_block(chunk, [&](std::size_t begin, std::size_t count) {
      if (std::any_of(codes + begin, codes + begin + count, [](int code) { return code != 0; }))
        refuse_unscaled(chunk, begin);
    });
  }
};

constexpr Int8Format kInt8;

}  // namespace

const CodecFormat& int8_format() { return kInt8; }

}  // namespace veilsum
