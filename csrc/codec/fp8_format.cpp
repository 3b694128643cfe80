// fp8_e4m3 and fp8_e5m2: an 8-bit float per coordinate, a scale per block or none.
#include <algorithm>
#include <cstdint>

#include "codec/block_scales.h"
#include "codec/format.h"
#include "element/fp8.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

constexpr unsigned kWhole = 1u << 20;  // no chunk has more codes

class Fp8Format final : public CodecFormat {
 public:
  constexpr Fp8Format(CodeRange range, std::uint8_t largest) : range_(range), largest_(largest) {}

  SectionSizes sizes(std::uint16_t codec, std::uint64_t count) const override {
    return {scale_section(codec, count), count};
  }

  void check(const ChunkView& chunk) const override {
    const auto* codes = reinterpret_cast<const std::uint8_t*>(chunk.codes.data());
    check_scales(chunk, range_);
    std::uint8_t found;
    kernels().block.max_patterns(codes, {chunk.codes.size(), kWhole}, &found);
    if (found > largest_)
      refuse_value(chunk, first_beyond(codes), "has an 8-bit float that is not finite");
    for_each_zero_block(chunk, [&](std::size_t begin, std::size_t count) {
      if (std::any_of(codes + begin, codes + begin + count, [](int code) { return code != 0; }))
        refuse_unscaled(chunk, begin);
    });
  }

 private:
  std::size_t first_beyond(const std::uint8_t* codes) const {
    std::size_t at = 0;
    while ((codes[at] & 0x7F) <= largest_) ++at;
    return at;
  }

  const CodeRange range_;
  const std::uint8_t largest_;
};

constexpr Fp8Format kE4M3({0x1p-9, 448}, E4M3::kLargest);
constexpr Fp8Format kE5M2({0x1p-16, 57344}, E5M2::kLargest);

}  // namespace

const CodecFormat& fp8_e4m3_format() { return kE4M3; }
const CodecFormat& fp8_e5m2_format() { return kE5M2; }

}  // namespace veilsum
