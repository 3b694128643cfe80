#include "codec/format.h"

#include <cmath>
#include <string>

#include "base/error.h"
#include "codec/codecs.h"

namespace veilsum {

const CodecFormat& codec_format(std::uint16_t codec) {
  if (ring_bits(codec) != 0) return ring_format();
  if (eden_bits(codec) != 0) return eden_format();
  switch (codec_family(codec)) {
    case kCodecF32:
      return f32_format();
    case kCodecF16:
      return f16_format();
    case kCodecBf16:
      return bf16_format();
    case kCodecInt8:
      return int8_format();
    case kCodecI64:
      return i64_format();
    case kCodecInt4:
      return int4_format();
    case kCodecNf4:
      return nf4_format();
    case kCodecFp4:
      return fp4_format();
    case kCodecFp8E4M3:
      return fp8_e4m3_format();
    case kCodecFp8E5M2:
      return fp8_e5m2_format();
    case kCodecSign:
      return sign_format();
    case kCodecTopK:
      return topk_format();
    default:
      throw ConfigError("unknown codec number " + std::to_string(codec));
  }
}

void refuse_value(const ChunkView& chunk, std::size_t value, const std::string& what) {
  throw DecodeError("coordinate " + std::to_string(chunk.header.first + value) + " of group " +
                    std::to_string(chunk.header.group) + " " + what);
}

bool is_legal_scale(float scale, double smallest, double largest) {
  if (scale == 0) return !std::signbit(scale);
  const double wide = scale;  // products are exact or nearly so; comparisons are false for NaN
  return scale >= 0x1p-126f && smallest * wide >= 0x1p-126 && largest * wide <= 0x1.fffffep127;
}

}  // namespace veilsum
