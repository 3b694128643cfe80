// eden1 to eden4: codes of a rotated update, and a scale per rotation block.
#include "codec/eden.h"

#include <algorithm>
#include <cstring>

#include "codec/codecs.h"
#include "codec/format.h"
#include "element/eden.h"
#include "kernels/codec_kernels.h"

namespace veilsum {
namespace {

// No value of a block is beyond so many scales: its centroids are below 2.74, and rotating
// 4096 of them back makes at most 64 times as much.
constexpr double kLargest = 256;

class EdenFormat final : public CodecFormat {
 public:
  SectionSizes sizes(std::uint16_t codec, std::uint64_t count) const override {
    std::size_t blocks = count / kRotationTile;
    for_each_eden_block(count % kRotationTile,
                        [&](std::size_t, std::size_t, std::size_t) { ++blocks; });
    return {4 * blocks, eden_padded(count) / 8 * eden_bits(codec)};
  }

  void check(const ChunkView& chunk) const override {
    const auto* scales = reinterpret_cast<const WireFloat*>(chunk.scales.data());
    const unsigned bits = eden_bits(chunk.header.codec);
    for_each_eden_block(
        chunk.header.count, [&](std::size_t number, std::size_t begin, std::size_t size) {
          const float scale = scales[number];
          if (!is_legal_scale(scale, 1, kLargest))
            refuse_value(chunk, begin,
                         "has a block scale that is negative, not finite, subnormal or too large");
          const auto codes = chunk.codes.subspan(begin / 8 * bits, size / 8 * bits);
          const bool empty = std::all_of(codes.begin(), codes.end(),
                                         [](std::byte byte) { return byte == std::byte{0}; });
          if (scale == 0 && !empty)
            refuse_value(chunk, begin, "has codes but no scale in its block");
        });
  }
};

constexpr EdenFormat kEden;

}  // namespace

Rotation eden_rotation(const ChunkHeader& header) {
  std::uint64_t plan_tag;
  std::memcpy(&plan_tag, header.plan.data(), sizeof plan_tag);
  return {kRotationTile, eden_key(header.update_id, plan_tag), header.group};
}

const CodecFormat& eden_format() { return kEden; }

}  // namespace veilsum
