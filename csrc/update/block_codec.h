// What the codecs whose codes share scales in blocks have in common.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "codec/block_scales.h"
#include "kernels/block_kernels.h"
#include "update/value_codec.h"

namespace veilsum {

inline constexpr std::size_t kLeastBlock = 32;
inline constexpr std::size_t kTileBlocks = kCodedTile / kLeastBlock;

// The scales of one tile, wide. No block is in two tiles.
struct TileScales {
  BlockRange range;    // what the kernels are told
  std::size_t blocks;  // how many there are
  std::array<float, kTileBlocks> scale;

  const float* data() const { return scale.data(); }
};

TileScales read_scales(const CodedTile& tile);

// Coordinates that share a scale.
inline unsigned block_of(const CodedTile& tile) { return scale_block(tile.chunk.header.codec); }

// Tiles that are added in one pass: what belongs to them stays in the first-level cache.
inline constexpr std::size_t kStreams = 16;

// Calls `body(tiles, scales)`, with the scales of each, for every run of up to kStreams tiles
// whose blocks are of one size.
template <class Body>
void for_each_batch(std::span<const WeightedTile> tiles, const Body& body) {
  std::array<TileScales, kStreams> scales;
  std::size_t begin = 0, held = 0;
  const auto flush = [&] {
    if (held > 0) body(tiles.subspan(begin, held), scales.data());
    begin += held;
    held = 0;
  };
  for (const WeightedTile& tile : tiles) {
    if (held == kStreams || (held > 0 && block_of(tile.tile) != scales[0].range.block)) flush();
    scales[held++] = read_scales(tile.tile);
  }
  flush();
}

// Rounds scales to the codec's wire format and writes them to their place; false if one does not
// fit it. `scales` are then what a reader will find: 0 for those that no reader would accept.
bool write_scales(const CodePiece& piece, const CodeRange& range, TileScales& scales);

// An empty set of scales for the values of a piece.
TileScales scales_for(const CodePiece& piece, std::size_t count);

// A codec of codes to either side of 0, which gives the largest magnitude of a block its largest
// code.
class BlockCodec : public PieceCodec {
 public:
  double overflow_threshold(std::uint16_t codec) const override;

 protected:
  constexpr explicit BlockCodec(CodeRange range) : range_(range) {}
  ~BlockCodec() = default;

  bool write(std::span<const float> values, const CodePiece& piece) const final;
  bool refuses_not_finite(std::uint16_t codec) const final;
  // False if a value does not fit.
  virtual bool write_codes(std::span<const float> values, const TileScales& scales,
                           const CodePiece& piece) const = 0;

  const CodeRange range_;
};

}  // namespace veilsum
