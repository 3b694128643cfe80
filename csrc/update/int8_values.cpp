// int8: value = code * scale of its block.
#include <algorithm>
#include <array>
#include <cstdint>

#include "kernels/dispatch.h"
#include "update/block_codec.h"

namespace veilsum {
namespace {

constexpr CodeRange kRange = {1, 127};

const std::int8_t* codes_of(const CodedTile& tile) {
  return reinterpret_cast<const std::int8_t*>(tile.chunk.codes.data()) + tile.begin;
}

// The kernels know blocks of kInt8Block codes. A larger block is several of them with one scale;
// smaller ones are handed over one by one. Calls `body(begin, count, scales)`.
template <class Body>
void for_each_run(const TileScales& scales, const Body& body) {
  const auto [count, block] = scales.range;
  if (block < kInt8Block) {
    for (std::size_t begin = 0; begin < count; begin += block)
      body(begin, std::min<std::size_t>(block, count - begin), scales.data() + begin / block);
    return;
  }
  std::array<float, kCodedTile / kInt8Block> repeated;
  for (std::size_t begin = 0; begin < count; begin += kInt8Block)
    repeated[begin / kInt8Block] = scales.scale[begin / block];
  body(0, count, repeated.data());
}

// How far a scale's code counts in a sum; one per kInt8Block codes. Beyond the tile's bound only
// where every code is zero: the multiplier does not matter.
void write_multipliers(const TileScales& scales, double factor, std::uint64_t* multipliers) {
  const auto [count, block] = scales.range;
  const std::size_t runs = (count + kInt8Block - 1) / kInt8Block;
  if (block == kInt8Block)
    return kernels().block.scale_terms(scales.data(), runs, factor, multipliers);
  std::array<float, kTileBlocks> repeated;
  for (std::size_t run = 0; run < runs; ++run)
    repeated[run] = scales.scale[run * kInt8Block / block];
  kernels().block.scale_terms(repeated.data(), runs, factor, multipliers);
}

class Int8Values final : public BlockCodec {
 public:
  constexpr Int8Values() : BlockCodec(kRange) {}

  void decode(const CodedTile& tile, std::span<float> values) const override {
    for_each_run(read_scales(tile), [&](std::size_t begin, std::size_t count, const float* scales) {
      kernels().codec.decode_int8(codes_of(tile) + begin, scales, count, values.data() + begin);
    });
  }

  // Products of 7 and 24 bits: exact in a double.
  double largest(const CodedTile& tile) const override {
    double largest = 0;
    for_each_run(read_scales(tile), [&](std::size_t begin, std::size_t count, const float* scales) {
      std::array<std::uint8_t, kCodedTile / kInt8Block> codes;
      kernels().codec.max_codes(codes_of(tile) + begin, count, codes.data());
      for (std::size_t block = 0; block * kInt8Block < count; ++block)
        largest = std::max(largest, double{scales[block]} * codes[block]);
    });
    return largest;
  }

  double squares(const CodedTile& tile) const override {
    double squares = 0;
    for_each_run(read_scales(tile), [&](std::size_t begin, std::size_t count, const float* scales) {
      std::array<std::uint32_t, kCodedTile / kInt8Block> codes;
      kernels().codec.square_codes(codes_of(tile) + begin, count, codes.data());
      for (std::size_t block = 0; block * kInt8Block < count; ++block)
        squares += double{scales[block]} * scales[block] * codes[block];
    });
    return squares;
  }

  void add(const CodedTile& tile, double factor, std::uint64_t* sums) const override {
    const TileScales scales = read_scales(tile);
    std::array<std::uint64_t, kTileBlocks> multipliers;
    kernels().block.scale_terms(scales.data(), scales.blocks, factor, multipliers.data());
    kernels().block.add_steps(codes_of(tile), scales.range, multipliers.data(), sums);
  }

  // Tiles of blocks that the kernels know are added in one pass.
  void add_all(std::span<const WeightedTile> tiles, std::uint64_t* sums) const override {
    std::array<std::uint64_t, kStreams * kTileBlocks> multipliers;
    std::array<CodeStream, kStreams> streams;
    for_each_batch(tiles, [&](std::span<const WeightedTile> some, const TileScales* scales) {
      if (scales->range.block < kInt8Block) {
        for (const auto& [tile, factor] : some) add(tile, factor, sums);
        return;
      }
      for (std::size_t k = 0; k < some.size(); ++k) {
        std::uint64_t* own = multipliers.data() + k * kTileBlocks;
        write_multipliers(scales[k], some[k].factor, own);
        streams[k] = {codes_of(some[k].tile), own};
      }
      kernels().codec.add_int8_streams(streams.data(), some.size(), scales->range.count, sums);
    });
  }

 private:
  bool write_codes(std::span<const float> values, const TileScales& scales,
                   const CodePiece& piece) const override {
    kernels().block.encode_steps(values.data(), scales.range, piece.header.first + piece.begin,
                                 piece.rule, scales.data(), 127,
                                 reinterpret_cast<std::int8_t*>(piece.codes.data()) + piece.begin);
    return true;
  }
};

constexpr Int8Values kInt8;

}  // namespace

const ValueCodec& int8_values() { return kInt8; }

}  // namespace veilsum
