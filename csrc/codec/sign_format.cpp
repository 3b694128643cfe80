// sign: a bit per coordinate, a magnitude per block.
#include <algorithm>

#include "base/error.h"
#include "codec/block_scales.h"
#include "codec/format.h"

namespace veilsum {
namespace {

class SignFormat final : public CodecFormat {
 public:
  SectionSizes sizes(std::uint16_t codec, std::uint64_t count) const override {
    return {scale_section(codec, count), (count + 7) / 8};
  }

  void check(const ChunkView& chunk) const override {
    check_scales(chunk, {1, 1});
    const unsigned used = chunk.header.count % 8;
    if (used != 0 && std::to_integer<unsigned>(chunk.codes.back()) >> used != 0)
      throw DecodeError("a padding bit after the chunk's last sign is set");
    // Blocks are whole bytes, and behind the last one the padding is clear.
    for_each_zero_block(chunk, [&](std::size_t begin, std::size_t count) {
      const auto bytes = chunk.codes.subspan(begin / 8, (count + 7) / 8);
      if (std::any_of(bytes.begin(), bytes.end(),
                      [](std::byte byte) { return byte != std::byte{0}; }))
        refuse_unscaled(chunk, begin);
    });
  }
};

constexpr SignFormat kSign;

}  // namespace

const CodecFormat& sign_format() { return kSign; }

}  // namespace veilsum
