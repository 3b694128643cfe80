// int4, nf4, fp4: value = table[code] * scale of its block.
#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

#include "element/code_tables.h"
#include "kernels/dispatch.h"
#include "update/block_codec.h"

namespace veilsum {
namespace {

constexpr TermRule term_rule(const CodeTable& table, double unit) {
  TermRule rule{unit, {}, {}};
  for (unsigned code = 0; code < kTableCodes; ++code) {
    rule.values[code] = table.value[code];
    if (unit != 0)
      rule.multiples[code] =
          static_cast<std::uint64_t>(static_cast<std::int64_t>(table.value[code] / unit));
  }
  return rule;
}

class NibbleValues : public BlockCodec {
 public:
  void decode(const CodedTile& tile, std::span<float> values) const override {
    const TileScales scales = read_scales(tile);
    kernels().block.decode_nibbles(packed(tile), scales.range, table_.value, scales.data(),
                                   values.data());
  }

  double largest(const CodedTile& tile) const override {
    const TileScales scales = read_scales(tile);
    std::array<std::uint8_t, kTileBlocks> ranks;
    kernels().block.max_ranks(packed(tile), scales.range, table_.rank, ranks.data());
    double largest = 0;
    for (std::size_t block = 0; block < scales.blocks; ++block)
      largest = std::max(largest, double{scales.scale[block]} * table_.magnitude[ranks[block]]);
    return largest;
  }

  void add(const CodedTile& tile, double factor, std::uint64_t* sums) const override {
    const TileScales scales = read_scales(tile);
    const NibbleStream stream = {packed(tile), scales.data(), factor};
    kernels().block.add_nibble_streams(&stream, 1, scales.range, terms_, sums);
  }

  void add_all(std::span<const WeightedTile> tiles, std::uint64_t* sums) const override {
    std::array<NibbleStream, kStreams> streams;
    for_each_batch(tiles, [&](std::span<const WeightedTile> some, const TileScales* scales) {
      for (std::size_t k = 0; k < some.size(); ++k)
        streams[k] = {packed(some[k].tile), scales[k].data(), some[k].factor};
      kernels().block.add_nibble_streams(streams.data(), some.size(), scales->range, terms_, sums);
    });
  }

 protected:
  // `unit`: what all values are multiples of, 0 if there is nothing.
  constexpr NibbleValues(const CodeTable& table, double unit)
      : BlockCodec({table.smallest, table.largest()}),
        table_(table),
        terms_(term_rule(table, unit)) {}
  ~NibbleValues() = default;

  // One code per byte.
  virtual void write_nibbles(std::span<const float> values, const TileScales& scales,
                             const CodePiece& piece, std::int8_t* codes) const = 0;

  const CodeTable& table_;

 private:
  static const unsigned char* packed(const CodedTile& tile) {
    return reinterpret_cast<const unsigned char*>(tile.chunk.codes.data()) + tile.begin / 2;
  }

  bool write_codes(std::span<const float> values, const TileScales& scales,
                   const CodePiece& piece) const final {
    std::array<std::int8_t, kCodedTile> codes;
    write_nibbles(values, scales, piece, codes.data());
    kernels().block.pack_nibbles(
        codes.data(), values.size(),
        reinterpret_cast<unsigned char*>(piece.codes.data()) + piece.begin / 2);
    return true;
  }

  const TermRule terms_;
};

class Int4Values final : public NibbleValues {
 public:
  constexpr Int4Values() : NibbleValues(kInt4Table, 1) {}

 private:
  void write_nibbles(std::span<const float> values, const TileScales& scales,
                     const CodePiece& piece, std::int8_t* codes) const override {
    kernels().block.encode_steps(values.data(), scales.range, piece.header.first + piece.begin,
                                 piece.rule, scales.data(), 7, codes);
  }
};

// The neighbour, on the side of -infinity, of a float that is not 0.
constexpr float below(float value) {
  const auto bits = std::bit_cast<std::int32_t>(value);
  return std::bit_cast<float>(bits > 0 ? bits - 1 : bits + 1);
}

// The largest float that is not above `bound`: the floats above it are those above `bound`.
constexpr float bound_between(float lower, float upper) {
  const double middle = (double{lower} + double{upper}) / 2;
  const auto rounded = static_cast<float>(middle);
  return double{rounded} <= middle ? rounded : below(rounded);
}

// To the nearest value, of two the lower one.
constexpr NearestRule nf4_rule() {
  NearestRule rule{{}, false};
  for (unsigned k = 0; k + 1 < kTableCodes; ++k)
    rule.bounds[k] = bound_between(kNf4Table.value[k], kNf4Table.value[k + 1]);
  return rule;
}

// To the nearest magnitude, of two the one with the even code, as IEEE formats round.
constexpr NearestRule fp4_rule() {
  NearestRule rule{{}, true};
  for (unsigned k = 0; k < 7; ++k) {
    const float middle = bound_between(kFp4Table.value[k], kFp4Table.value[k + 1]);
    rule.bounds[k] = k % 2 == 0 ? middle : below(middle);
  }
  return rule;
}

class NearestValues : public NibbleValues {
 protected:
  constexpr NearestValues(const CodeTable& table, double unit, const NearestRule& rule)
      : NibbleValues(table, unit), rule_(rule) {}
  ~NearestValues() = default;

 private:
  void write_nibbles(std::span<const float> values, const TileScales& scales, const CodePiece&,
                     std::int8_t* codes) const final {
    kernels().block.encode_nearest(values.data(), scales.range, rule_, scales.data(),
                                   static_cast<std::int8_t>(table_.zero), codes);
  }

  const NearestRule rule_;
};

class Nf4Values final : public NearestValues {
 public:
  constexpr Nf4Values() : NearestValues(kNf4Table, 0, nf4_rule()) {}
};

class Fp4Values final : public NearestValues {
 public:
  constexpr Fp4Values() : NearestValues(kFp4Table, 0.5, fp4_rule()) {}
};

constexpr Int4Values kInt4;
constexpr Nf4Values kNf4;
constexpr Fp4Values kFp4;

}  // namespace

const ValueCodec& int4_values() { return kInt4; }
const ValueCodec& nf4_values() { return kNf4; }
const ValueCodec& fp4_values() { return kFp4; }

}  // namespace veilsum
