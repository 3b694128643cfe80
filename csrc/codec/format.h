// What the chunks of each codec look like and which scales and codes it allows. A new codec
// is a family in codecs.cpp, a CodecFormat here, and a ValueCodec in update/.
#pragma once

#include <string>

#include "codec/chunk.h"

namespace veilsum {

class CodecFormat {
 public:
  // Exact bytes of the sections: a function of codec and count alone.
  virtual SectionSizes sizes(std::uint16_t codec, std::uint64_t count) const = 0;

  // Throws DecodeError if a scale or code is not one that an encoder writes. The sections have
  // their sizes; nothing else about them has been checked.
  virtual void check(const ChunkView& chunk) const = 0;

 protected:
  ~CodecFormat() = default;
};

// Throws ConfigError if the codec is unknown.
const CodecFormat& codec_format(std::uint16_t codec);

// One per family.
const CodecFormat& f32_format();
const CodecFormat& f16_format();
const CodecFormat& bf16_format();
const CodecFormat& int8_format();
const CodecFormat& i64_format();
const CodecFormat& int4_format();
const CodecFormat& nf4_format();
const CodecFormat& fp4_format();
const CodecFormat& fp8_e4m3_format();
const CodecFormat& fp8_e5m2_format();
const CodecFormat& sign_format();
const CodecFormat& topk_format();
const CodecFormat& eden_format();
const CodecFormat& ring_format();

// --- for formats ------------------------------------------------------------------

// Throws the DecodeError of a value, counted from the start of the chunk.
[[noreturn]] void refuse_value(const ChunkView& chunk, std::size_t value, const std::string& what);

// Whether a scale is 0, or neither negative nor not finite, and the products with it of codes
// from `smallest` to `largest` are normal floats. Some CPUs take a hundred times longer over
// subnormal numbers.
bool is_legal_scale(float scale, double smallest, double largest);

// Blocks that `count` coordinates have.
inline std::size_t block_count(std::uint64_t count, unsigned block) {
  return (count + block - 1) / block;
}

}  // namespace veilsum
