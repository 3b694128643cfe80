// int4, nf4, fp4: four bits per coordinate that index a table of sixteen values, a scale per
// block.
#include <algorithm>
#include <array>
#include <cstdint>

#include "base/error.h"
#include "codec/block_scales.h"
#include "codec/format.h"
#include "element/code_tables.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

constexpr std::size_t kScreened = 4096;  // codes looked at between two decisions
constexpr std::size_t kLeastBlock = 32;

class NibbleFormat final : public CodecFormat {
 public:
  constexpr explicit NibbleFormat(const CodeTable& table) : table_(table) {}

  SectionSizes sizes(std::uint16_t codec, std::uint64_t count) const override {
    return {scale_section(codec, count), (count + 1) / 2};
  }

  void check(const ChunkView& chunk) const override {
    check_scales(chunk, {table_.smallest, table_.largest()});
    const auto* packed = reinterpret_cast<const unsigned char*>(chunk.codes.data());
    if (chunk.header.count % 2 != 0 && packed[chunk.codes.size() - 1] >> 4 != 0)
      throw DecodeError("the half byte after the chunk's last code is not zero");
    for (std::size_t begin = 0; begin < chunk.header.count; begin += kScreened)
      check_blocks(chunk, packed + begin / 2, begin);
  }

 private:
  void check_blocks(const ChunkView& chunk, const unsigned char* packed, std::size_t begin) const {
    const BlockScales scales(chunk);
    const BlockRange range = {std::min<std::size_t>(kScreened, chunk.header.count - begin),
                              scales.block()};
    std::array<std::uint8_t, kScreened / kLeastBlock> ranks;
    kernels().block.max_ranks(packed, range, table_.rank, ranks.data());
    for (std::size_t at = 0; at < range.count; at += range.block) {
      const std::uint8_t rank = ranks[at / range.block];
      if (rank > table_.most) refuse_value(chunk, begin + at, "has an int4 code -8 in its block");
      if (rank != 0 && scales[(begin + at) / range.block] == 0) refuse_unscaled(chunk, begin + at);
    }
  }

  const CodeTable& table_;
};

constexpr NibbleFormat kInt4(kInt4Table);
constexpr NibbleFormat kNf4(kNf4Table);
constexpr NibbleFormat kFp4(kFp4Table);

}  // namespace

const CodecFormat& int4_format() { return kInt4; }
const CodecFormat& nf4_format() { return kNf4; }
const CodecFormat& fp4_format() { return kFp4; }

}  // namespace veilsum
