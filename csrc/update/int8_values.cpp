// int8: value = code * scale of its block.
#include <algorithm>
#include <array>
#include <cstdint>

#include "element/fixed_point.h"
#include "kernels/dispatch.h"
#include "update/value_codec.h"

namespace veilsum {
namespace {

constexpr std::size_t kTileBlocks = kCodedTile / kInt8Block;

const std::int8_t* codes_of(const CodedTile& tile) {
  return reinterpret_cast<const std::int8_t*>(tile.chunk.codes.data()) + tile.begin;
}

const WireFloat* scales_of(const CodedTile& tile) {
  return reinterpret_cast<const WireFloat*>(tile.chunk.scales.data()) + tile.begin / kInt8Block;
}

class Int8Values final : public PieceCodec {
 public:
  void decode(const CodedTile& tile, std::span<float> values) const override {
    kernels().codec.decode_int8(codes_of(tile), scales_of(tile), values.size(), values.data());
  }

  // Products of 7 and 24 bits: exact in a double.
  double largest(const CodedTile& tile) const override {
    const WireFloat* scales = scales_of(tile);
    std::array<std::uint8_t, kTileBlocks> codes;
    kernels().codec.max_codes(codes_of(tile), tile.count, codes.data());
    double largest = 0;
    for (std::size_t block = 0; block * kInt8Block < tile.count; ++block)
      largest = std::max(largest, double{scales[block]} * codes[block]);
    return largest;
  }

  double squares(const CodedTile& tile) const override {
    const WireFloat* scales = scales_of(tile);
    std::array<std::uint32_t, kTileBlocks> codes;
    kernels().codec.square_codes(codes_of(tile), tile.count, codes.data());
    double squares = 0;
    for (std::size_t block = 0; block * kInt8Block < tile.count; ++block)
      squares += double{scales[block]} * scales[block] * codes[block];
    return squares;
  }

  void add(const CodedTile& tile, double factor, std::uint64_t* sums) const override {
    const WireFloat* scales = scales_of(tile);
    std::array<std::uint64_t, kTileBlocks> multipliers;
    for (std::size_t block = 0; block * kInt8Block < tile.count; ++block) {
      const double product = double{scales[block]} * factor;
      // Beyond the tile's bound only where every code is zero: the factor does not matter.
      multipliers[block] = product < 0x1p62 ? to_fixed_point(product) : 0;
    }
    kernels().codec.add_int8(codes_of(tile), multipliers.data(), tile.count, sums);
  }

 private:
  bool write(std::span<const float> values, const CodePiece& piece) const override {
    kernels().codec.encode_int8(
        values.data(), values.size(), piece.header.first + piece.begin, piece.rule,
        reinterpret_cast<WireFloat*>(piece.scales.data()) + piece.begin / kInt8Block,
        reinterpret_cast<std::int8_t*>(piece.codes.data()) + piece.begin);
    return true;
  }
};

constexpr Int8Values kInt8;

}  // namespace

const ValueCodec& int8_values() { return kInt8; }

}  // namespace veilsum
