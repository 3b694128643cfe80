// ring1 to ring64: words of so many bits, densely packed.
#include "base/error.h"
#include "codec/codecs.h"
#include "codec/format.h"
#include "element/bits.h"

namespace veilsum {
namespace {

class RingFormat final : public CodecFormat {
 public:
  SectionSizes sizes(std::uint16_t codec, std::uint64_t count) const override {
    return {0, packed_size(count, ring_bits(codec))};
  }

  void check(const ChunkView& chunk) const override {
    const unsigned bits = ring_bits(chunk.header.codec);
    const unsigned used = static_cast<unsigned>(chunk.header.count % 8 * bits % 8);
    if (used != 0 && std::to_integer<unsigned>(chunk.codes.back()) >> used != 0)
      throw DecodeError("a padding bit after the chunk's last ring word is set");
  }
};

constexpr RingFormat kRing;

}  // namespace

const CodecFormat& ring_format() { return kRing; }

}  // namespace veilsum
