// fp8_e4m3 and fp8_e5m2: value = 8-bit float * scale of its block.
//
// Sums take the values as floats: a table of a term for each of 256 codes costs more than the
// 64 codes of a block.
#include <algorithm>
#include <array>
#include <cstdint>

#include "codec/codecs.h"
#include "element/fp8.h"
#include "kernels/dispatch.h"
#include "update/block_codec.h"

namespace veilsum {
namespace {

const std::uint8_t* codes_of(const CodedTile& tile) {
  return reinterpret_cast<const std::uint8_t*>(tile.chunk.codes.data()) + tile.begin;
}

std::array<std::uint8_t, kTileBlocks> max_patterns(const std::uint8_t* codes,
                                                   const BlockRange& range) {
  std::array<std::uint8_t, kTileBlocks> largest;
  kernels().block.max_patterns(codes, range, largest.data());
  return largest;
}

class Fp8Values final : public BlockCodec {
 public:
  // `overflow` is the smallest magnitude that the format itself cannot hold.
  constexpr Fp8Values(Fp8 format, CodeRange range, std::uint8_t most, double overflow)
      : BlockCodec(range), format_(format), most_(most), overflow_(overflow) {}

  void decode(const CodedTile& tile, std::span<float> values) const override {
    const TileScales scales = read_scales(tile);
    kernels().block.decode_fp8(format_, codes_of(tile), scales.range, scales.data(), values.data());
  }

  double largest(const CodedTile& tile) const override {
    const TileScales scales = read_scales(tile);
    const auto patterns = max_patterns(codes_of(tile), scales.range);
    double largest = 0;
    for (std::size_t block = 0; block < scales.blocks; ++block)
      largest = std::max(largest, double{scales.scale[block]} * widen(patterns[block]));
    return largest;
  }

  double overflow_threshold(std::uint16_t codec) const override {
    return is_raw(codec) ? overflow_ : BlockCodec::overflow_threshold(codec);
  }

 private:
  double widen(std::uint8_t pattern) const {
    return format_ == Fp8::e4m3 ? widen_fp8<E4M3>(pattern) : widen_fp8<E5M2>(pattern);
  }

  static bool is_raw(std::uint16_t codec) { return codec_scales(codec) == ScaleFormat::none; }

  // Without a scale, values are narrowed twice, so the first time to odd.
  Narrowing narrowing(std::uint16_t codec) const override {
    return is_raw(codec) ? Narrowing::odd : Narrowing::nearest;
  }

  bool write_codes(std::span<const float> values, const TileScales& scales,
                   const CodePiece& piece) const override {
    auto* codes = reinterpret_cast<std::uint8_t*>(piece.codes.data()) + piece.begin;
    // A scale that was rounded down may leave the largest value beyond the largest code. Without
    // scales such a value is too large, and gets the next pattern, by which it is seen.
    const bool raw = is_raw(piece.header.codec);
    const auto most = static_cast<std::uint8_t>(raw ? most_ + 1 : most_);
    kernels().block.encode_fp8(format_, values.data(), scales.range, scales.data(), most, codes);
    return !raw || max_patterns(codes, scales.range)[0] <= most_;
  }

  const Fp8 format_;
  const std::uint8_t most_;
  const double overflow_;
};

// What is half-way to the step after the largest number rounds to the even one of the two: down
// to 448, but up from 57344.
constexpr Fp8Values kE4M3(Fp8::e4m3, {0x1p-9, 448}, E4M3::kLargest, 464 + 0x1p-44);
constexpr Fp8Values kE5M2(Fp8::e5m2, {0x1p-16, 57344}, E5M2::kLargest, 61440);

}  // namespace

const ValueCodec& fp8_e4m3_values() { return kE4M3; }
const ValueCodec& fp8_e5m2_values() { return kE5M2; }

}  // namespace veilsum
