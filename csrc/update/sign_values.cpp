// sign: value = the block's mean magnitude, with the sign of the coordinate.
#include <algorithm>
#include <array>
#include <cstdint>

#include "kernels/dispatch.h"
#include "update/block_codec.h"

namespace veilsum {
namespace {

constexpr CodeRange kRange = {1, 1};
constexpr double kMeanOverflow = 65520;  // as f16

const unsigned char* bits_of(const CodedTile& tile) {
  return reinterpret_cast<const unsigned char*>(tile.chunk.codes.data()) + tile.begin / 8;
}

// How many coordinates of each block belong to a tensor.
std::array<std::uint32_t, kTileBlocks> count_members(const CodePiece& piece,
                                                     const BlockRange& range) {
  std::array<std::uint32_t, kTileBlocks> members{};
  for_each_part(piece.layout, kFloatGroup, piece.header.first + piece.begin, range.count,
                [&](const TensorPart& part) {
                  const std::size_t end = part.offset + part.count;
                  std::size_t block = part.offset / range.block;
                  for (std::size_t at = part.offset; at < end; ++block) {
                    const std::size_t next = std::min(end, (block + 1) * range.block);
                    members[block] += static_cast<std::uint32_t>(next - at);
                    at = next;
                  }
                });
  return members;
}

class SignValues final : public PieceCodec {
 public:
  // A bit says + or -, so a gap would decode to a value. It is 0; unless its bit is set, which is
  // left for the check of gaps to find.
  void decode(const CodedTile& tile, std::span<float> values) const override {
    const TileScales scales = read_scales(tile);
    kernels().block.decode_signs(bits_of(tile), scales.range, scales.data(), values.data());
    const std::uint64_t first = tile.chunk.header.first + tile.begin;
    for_each_gap(tile.layout, kFloatGroup, first, values.size(),
                 [&](std::size_t offset, std::size_t count) {
                   for (float& value : values.subspan(offset, count)) value = std::min(value, 0.0F);
                 });
  }

  double largest(const CodedTile& tile) const override {
    const TileScales scales = read_scales(tile);
    return *std::max_element(scales.data(), scales.data() + scales.blocks);
  }

  void add(const CodedTile& tile, double factor, std::uint64_t* sums) const override {
    const WeightedTile only[] = {{tile, factor}};
    add_all(only, sums);
  }

  void add_all(std::span<const WeightedTile> tiles, std::uint64_t* sums) const override {
    std::array<std::uint64_t, kStreams * kTileBlocks> terms;
    std::array<SignStream, kStreams> streams;
    for_each_batch(tiles, [&](std::span<const WeightedTile> some, const TileScales* scales) {
      for (std::size_t k = 0; k < some.size(); ++k) {
        std::uint64_t* own = terms.data() + k * kTileBlocks;
        kernels().block.scale_terms(scales[k].data(), scales[k].blocks, some[k].factor, own);
        streams[k] = {bits_of(some[k].tile), own};
      }
      kernels().block.add_sign_streams(streams.data(), some.size(), scales->range, sums);
    });
  }

  double overflow_threshold(std::uint16_t codec) const override {
    return codec_scales(codec) == ScaleFormat::f16 ? kMeanOverflow
                                                   : PieceCodec::overflow_threshold(codec);
  }

 private:
  bool write(std::span<const float> values, const CodePiece& piece) const override {
    TileScales scales = scales_for(piece, values.size());
    std::array<double, kTileBlocks> sums;
    kernels().block.sum_blocks(values.data(), scales.range, sums.data());
    const auto members = count_members(piece, scales.range);
    for (std::size_t block = 0; block < scales.blocks; ++block)
      scales.scale[block] =
          members[block] == 0 ? 0 : static_cast<float>(sums[block] / members[block]);
    if (!write_scales(piece, kRange, scales)) return false;
    kernels().block.encode_signs(
        values.data(), scales.range, scales.data(),
        reinterpret_cast<unsigned char*>(piece.codes.data()) + piece.begin / 8);
    return true;
  }

  // A sum with such a value is no scale.
  bool refuses_not_finite(std::uint16_t) const override { return true; }
};

constexpr SignValues kSign;

}  // namespace

const ValueCodec& sign_values() { return kSign; }

}  // namespace veilsum
