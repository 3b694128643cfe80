// What the codes of each codec stand for: values to chunks and back, and sums that skip the
// way over values where codes are integers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "codec/chunk.h"
#include "codec/codecs.h"
#include "kernels/codec_kernels.h"
#include "update/encode.h"
#include "update/form.h"

namespace veilsum {

// The unit of decoding: whatever mixes coordinates (a block, a rotation) does so within one
// tile, counted from the start of the group.
inline constexpr std::size_t kCodedTile = 4096;

// A tile of a checked chunk: `begin`, counted from the start of the chunk, is a multiple of
// kCodedTile, and `count` reaches the next multiple or the end of the chunk.
struct CodedTile {
  const Layout& layout;
  const ChunkView& chunk;
  const UpdateForm& form;
  std::size_t begin;
  std::size_t count;
};

// One of several tiles of the same coordinates that are added.
struct WeightedTile {
  CodedTile tile;
  double factor;
};

// All members may be called from several threads. Every level gives the same bits.
class ValueCodec {
 public:
  // The tile's values, each rounded once to float. A value that no float can hold comes out
  // infinite.
  virtual void decode(const CodedTile& tile, std::span<float> values) const = 0;

  // A bound on every |value| of the tile, and on what add() takes for it; not finite if a
  // value is not.
  virtual double largest(const CodedTile& tile) const;

  // Sum of value^2 in double, in a fixed order.
  virtual double squares(const CodedTile& tile) const;

  // sums[i] += round(value i * factor), ties to even, with largest() * |factor| < 2^62.
  // Codecs with integer codes add code * round(scale * factor) instead: exact products, and
  // one rounding per block. The opposite factor takes exactly the same away.
  virtual void add(const CodedTile& tile, double factor, std::uint64_t* sums) const;

  // The same for tiles of several updates.
  virtual void add_all(std::span<const WeightedTile> tiles, std::uint64_t* sums) const;

  // The tile's values where they lie, if they lie there as floats; else null.
  virtual const WireFloat* floats(const CodedTile&) const { return nullptr; }

  // Whether the gaps between tensors, which are encoded as zeros, come out as something else.
  virtual bool fills_gaps() const { return false; }

  // Smallest magnitude that the codec with this number cannot hold.
  virtual double overflow_threshold(std::uint16_t codec) const;

  // Fills the chunks of group 1. Throws ConfigError, naming the tensor, if a value is not
  // finite or does not fit.
  virtual void encode(const Layout& layout, TensorData tensors, const EncodePlan& plan,
                      const ChunkGrid& grid, std::span<std::byte* const> chunks) const = 0;

 protected:
  ~ValueCodec() = default;
};

// Throws ConfigError if the codec is unknown or is not for group 1.
const ValueCodec& value_codec(std::uint16_t codec);

// One per family.
const ValueCodec& f32_values();
const ValueCodec& f16_values();
const ValueCodec& bf16_values();
const ValueCodec& int8_values();
const ValueCodec& int4_values();
const ValueCodec& nf4_values();
const ValueCodec& fp4_values();
const ValueCodec& fp8_e4m3_values();
const ValueCodec& fp8_e5m2_values();
const ValueCodec& sign_values();
const ValueCodec& topk_values(ScaleFormat values);
const ValueCodec& eden_values();
const ValueCodec& ring_values();

// Where a piece of a chunk that is being made belongs.
struct CodePiece {
  const Layout& layout;
  const ChunkHeader& header;
  std::size_t begin;            // of the piece, counted from the start of the chunk
  std::span<std::byte> scales;  // of the whole chunk
  std::span<std::byte> codes;
  CodeRule rule;
};

// A codec that takes floats piece by piece and looks at nothing else.
class PieceCodec : public ValueCodec {
 public:
  void encode(const Layout& layout, TensorData tensors, const EncodePlan& plan,
              const ChunkGrid& grid, std::span<std::byte* const> chunks) const final;

 protected:
  ~PieceCodec() = default;
  // Values to codes; false if one does not fit. Pieces are tiles (see CodedTile). They may lie in
  // the caller's arrays, which somebody may change meanwhile: codes are then those of no values,
  // but codes.
  virtual bool write(std::span<const float> values, const CodePiece& piece) const = 0;
  // Whether write() says false of values that are not finite; else it gets only finite ones.
  virtual bool refuses_not_finite(std::uint16_t) const { return false; }
  // How a wider value becomes a float on the way.
  virtual Narrowing narrowing(std::uint16_t) const { return Narrowing::nearest; }
};

}  // namespace veilsum
