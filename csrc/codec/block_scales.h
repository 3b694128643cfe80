// Scales that the coordinates of a block share, as they lie in a chunk.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/chunk.h"
#include "codec/codecs.h"

namespace veilsum {

// Magnitudes of a codec's codes but 0, before the scale.
struct CodeRange {
  double smallest;
  double largest;
};

// The scales of one checked or unchecked chunk, wide. Codes without scales have the scale 1.
class BlockScales {
 public:
  explicit BlockScales(const ChunkView& chunk);

  unsigned block() const { return block_; }
  // Of the block with this number in the chunk.
  float operator[](std::size_t number) const;
  // Of several blocks.
  void read(std::size_t first, std::size_t count, float* scales) const;

 private:
  void fetch_ahead(std::size_t first, std::size_t count) const;

  const std::byte* scales_;
  ScaleFormat format_;
  unsigned block_;
};

// Coordinates that a codec's scales are for; for codes without scales as many as a tile has,
// which share the scale 1.
unsigned scale_block(std::uint16_t codec);

// Bytes that the scales of `count` coordinates occupy.
std::size_t scale_section(std::uint16_t codec, std::uint64_t count);

// Throws DecodeError unless every scale is 0, or such that its product with every code is 0 or
// a normal, finite float.
void check_scales(const ChunkView& chunk, const CodeRange& range);

// Calls `body(begin, count)` for the coordinates of every block whose scale is 0.
template <class Body>
void for_each_zero_block(const ChunkView& chunk, const Body& body) {
  const BlockScales scales(chunk);
  for (std::size_t begin = 0, block = 0; begin < chunk.header.count;
       begin += scales.block(), ++block)
    if (scales[block] == 0) {
      const std::size_t left = chunk.header.count - begin;
      body(begin, left < scales.block() ? left : scales.block());
    }
}

// Throws the DecodeError of a block with codes but no scale.
[[noreturn]] void refuse_unscaled(const ChunkView& chunk, std::size_t begin);

}  // namespace veilsum
