// eden1 to eden4: centroids of a normal distribution, scaled and rotated back.
//
// Rotated coordinates are close to normal whatever the update looks like, so one small table
// of centroids serves every update. Each update has a rotation of its own: then what
// different updates lose is unrelated, and averages out in their mean.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "codec/codecs.h"
#include "codec/eden.h"
#include "codec/format.h"
#include "codec/rotation.h"
#include "element/eden.h"
#include "kernels/dispatch.h"
#include "update/value_codec.h"

namespace veilsum {
namespace {

static_assert(kRotationTile == kCodedTile);

constexpr float kSmallestNormal = 0x1p-126f;

using Table = std::array<float, kEdenMostCodes>;

Table scaled_centroids(unsigned bits, float scale) {
  Table table{};
  for (unsigned code = 0; code < 1u << bits; ++code)
    table[code] = eden_value(eden_centroid(bits, code), scale);
  return table;
}

Table scaled_thresholds(unsigned bits, double deviation) {
  Table table{};
  for (unsigned code = 0; code + 1 < 1u << bits; ++code)
    table[code] = static_cast<float>(eden_threshold(bits, code) * deviation);
  return table;
}

const unsigned char* codes_at(std::span<const std::byte> codes, std::size_t begin, unsigned bits) {
  return reinterpret_cast<const unsigned char*>(codes.data()) + begin / 8 * bits;
}

// The scale that makes the decoded block right on average (Vargaftik et al. 2022),
// or the one that makes its error the smallest.
double best_scale(std::span<const float> rotated, double squares, const unsigned char* codes,
                  const CodePiece& piece) {
  const EdenKernels& eden = kernels().eden;
  const unsigned bits = eden_bits(piece.header.codec);
  std::array<float, kRotationTile> chosen;
  eden.look_up(codes, rotated.size(), bits, scaled_centroids(bits, 1).data(), chosen.data());
  const double product = eden.dot(rotated.data(), chosen.data(), rotated.size());
  if (!piece.rule.least_error) return squares / product;
  return product / eden.dot(chosen.data(), chosen.data(), rotated.size());
}

// A block that is zero, or whose scale would be subnormal, has no codes.
float write_block(std::span<const float> rotated, unsigned char* codes, const CodePiece& piece) {
  const EdenKernels& eden = kernels().eden;
  const unsigned bits = eden_bits(piece.header.codec);
  const double squares = eden.dot(rotated.data(), rotated.data(), rotated.size());
  const double deviation = std::sqrt(squares / static_cast<double>(rotated.size()));
  eden.quantize(rotated.data(), rotated.size(), bits, scaled_thresholds(bits, deviation).data(),
                codes);
  const double scale = squares > 0 ? best_scale(rotated, squares, codes, piece) : 0;
  if (static_cast<float>(scale) >= kSmallestNormal) return static_cast<float>(scale);
  std::memset(codes, 0, rotated.size() / 8 * bits);
  return 0;
}

class EdenValues final : public PieceCodec {
 public:
  void decode(const CodedTile& tile, std::span<float> values) const override {
    const unsigned bits = eden_bits(tile.chunk.header.codec);
    for_each_block(tile, [&](float scale, std::size_t begin, std::size_t size) {
      kernels().eden.look_up(codes_at(tile.chunk.codes, tile.begin + begin, bits), size, bits,
                             scaled_centroids(bits, scale).data(), values.data() + begin);
    });
    unrotate(eden_rotation(tile.chunk.header), tile.chunk.header.first + tile.begin, values);
    for_each_block(tile, [&](float scale, std::size_t begin, std::size_t size) {
      if (scale == 0) std::fill_n(values.data() + begin, size, 0.0f);  // not the negative one
    });
  }

  double overflow_threshold(std::uint16_t) const override {
    return 0x1p120;
  }  // sums of 64 must be floats

  bool fills_gaps() const override { return true; }

 private:
  // Calls use(scale, first coordinate within the tile, coordinates).
  template <class Use>
  static void for_each_block(const CodedTile& tile, Use&& use) {
    const auto* scales = reinterpret_cast<const WireFloat*>(tile.chunk.scales.data());
    for_each_eden_block(tile.count, [&](std::size_t number, std::size_t begin, std::size_t size) {
      use(scales[tile.begin / kRotationTile + number], begin, size);
    });
  }

  bool write(std::span<const float> values, const CodePiece& piece) const override {
    const unsigned bits = eden_bits(piece.header.codec);
    auto* scales = reinterpret_cast<WireFloat*>(piece.scales.data()) + piece.begin / kRotationTile;
    auto* codes = reinterpret_cast<unsigned char*>(piece.codes.data()) + piece.begin / 8 * bits;
    std::array<float, kRotationTile> rotated;
    std::copy(values.begin(), values.end(), rotated.begin());
    const std::uint32_t largest = kernels().codec.max_abs32(rotated.data(), values.size());
    if (largest >= std::bit_cast<std::uint32_t>(0x1p120f)) return false;  // a NaN too
    rotate(eden_rotation(piece.header), piece.header.first + piece.begin,
           {rotated.data(), values.size()});
    for_each_eden_block(values.size(), [&](std::size_t number, std::size_t begin,
                                           std::size_t size) {
      scales[number] = write_block({rotated.data() + begin, size}, codes + begin / 8 * bits, piece);
    });
    return true;
  }

  bool refuses_not_finite(std::uint16_t) const override { return true; }
};

constexpr EdenValues kEden;

}  // namespace

const ValueCodec& eden_values() { return kEden; }

}  // namespace veilsum
