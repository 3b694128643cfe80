// f32, f16 and bf16: values rounded to a format.
#include <cstring>
#include <vector>

#include "element/half.h"
#include "kernels/dispatch.h"
#include "update/value_codec.h"
#include "update/values.h"

namespace veilsum {
namespace {

const WireFloat* floats_of(const CodedTile& tile) {
  return reinterpret_cast<const WireFloat*>(tile.chunk.codes.data()) + tile.begin;
}

const WireHalf* halves_of(const CodedTile& tile) {
  return reinterpret_cast<const WireHalf*>(tile.chunk.codes.data()) + tile.begin;
}

class Float32Values final : public PieceCodec {
 public:
  void decode(const CodedTile& tile, std::span<float> values) const override {
    std::memcpy(values.data(), floats_of(tile), values.size_bytes());
  }

  const WireFloat* floats(const CodedTile& tile) const override { return floats_of(tile); }

 private:
  bool write(std::span<const float> values, const CodePiece& piece) const override {
    auto* const written = reinterpret_cast<WireFloat*>(piece.codes.data()) + piece.begin;
    std::memcpy(written, values.data(), values.size_bytes());
    return kernels().codec.max_abs32(written, values.size()) < 0x7F800000;
  }

  bool refuses_not_finite(std::uint16_t) const override { return true; }
};

// False if a value is or became infinite, or is NaN: `exponent` is the format's mask of exponent
// bits.
bool all_finite(const WireHalf* halves, std::size_t count, unsigned exponent) {
  unsigned infinite = 0;
  for (std::size_t i = 0; i < count; ++i) infinite |= (halves[i] & exponent) == exponent;
  return infinite == 0;
}

WireHalf* halves_at(const CodePiece& piece) {
  return reinterpret_cast<WireHalf*>(piece.codes.data()) + piece.begin;
}

// Of |value|. Patterns of magnitudes order like magnitudes.
std::uint16_t largest_pattern(const CodedTile& tile) {
  return static_cast<std::uint16_t>(kernels().codec.max_abs16(halves_of(tile), tile.count));
}

using AddHalves = void (*)(const HalfStream*, std::size_t, std::size_t, std::uint64_t*);

void add_halves(AddHalves add, std::span<const WeightedTile> tiles, std::uint64_t* sums) {
  std::vector<HalfStream> streams;
  streams.reserve(tiles.size());
  for (const WeightedTile& tile : tiles) streams.push_back({halves_of(tile.tile), tile.factor});
  add(streams.data(), streams.size(), tiles.front().tile.count, sums);
}

// Values are narrowed twice, so the first time to odd.
class Float16Values final : public PieceCodec {
 public:
  void decode(const CodedTile& tile, std::span<float> values) const override {
    kernels().codec.widen_f16(halves_of(tile), values.size(), values.data());
  }

  double largest(const CodedTile& tile) const override { return widen_half(largest_pattern(tile)); }

  void add(const CodedTile& tile, double factor, std::uint64_t* sums) const override {
    const WeightedTile only[] = {{tile, factor}};
    add_all(only, sums);
  }

  void add_all(std::span<const WeightedTile> tiles, std::uint64_t* sums) const override {
    add_halves(kernels().codec.add_f16_streams, tiles, sums);
  }

  double overflow_threshold(std::uint16_t) const override {
    return veilsum::overflow_threshold(DType::f16);
  }

 private:
  Narrowing narrowing(std::uint16_t) const override { return Narrowing::odd; }

  bool write(std::span<const float> values, const CodePiece& piece) const override {
    kernels().codec.narrow_f16(values.data(), values.size(), halves_at(piece));
    return all_finite(halves_at(piece), values.size(), 0x7C00);
  }

  bool refuses_not_finite(std::uint16_t) const override { return true; }
};

class Brain16Values final : public PieceCodec {
 public:
  void decode(const CodedTile& tile, std::span<float> values) const override {
    kernels().codec.widen_bf16(halves_of(tile), values.size(), values.data());
  }

  double largest(const CodedTile& tile) const override {
    return widen_brain(largest_pattern(tile));
  }

  void add(const CodedTile& tile, double factor, std::uint64_t* sums) const override {
    const WeightedTile only[] = {{tile, factor}};
    add_all(only, sums);
  }

  void add_all(std::span<const WeightedTile> tiles, std::uint64_t* sums) const override {
    add_halves(kernels().codec.add_bf16_streams, tiles, sums);
  }

  double overflow_threshold(std::uint16_t) const override {
    return veilsum::overflow_threshold(DType::bf16);
  }

 private:
  Narrowing narrowing(std::uint16_t) const override { return Narrowing::odd; }

  bool write(std::span<const float> values, const CodePiece& piece) const override {
    kernels().codec.narrow_bf16(values.data(), values.size(), halves_at(piece));
    return all_finite(halves_at(piece), values.size(), 0x7F80);
  }

  bool refuses_not_finite(std::uint16_t) const override { return true; }
};

constexpr Float32Values kFloat32;
constexpr Float16Values kFloat16;
constexpr Brain16Values kBrain16;

}  // namespace

const ValueCodec& f32_values() { return kFloat32; }
const ValueCodec& f16_values() { return kFloat16; }
const ValueCodec& bf16_values() { return kBrain16; }

}  // namespace veilsum
