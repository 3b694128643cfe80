// One update's values, tile by tile, whatever form they are kept in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "codec/gather.h"
#include "kernels/codec_kernels.h"
#include "update/decode.h"
#include "update/value_codec.h"

namespace veilsum {

// The unit of the mean: one scale, and sums that stay in the first-level cache.
inline constexpr std::size_t kTile = 4096;

// A tile of one group; the last one of a group may be shorter than kTile.
struct Tile {
  std::uint64_t first;
  std::size_t count;
};

// What an update is looked through for when it arrives.
enum class Screening {
  magnitudes,
  // Sums of squares too. Apart, because they cost a quarter of the speed at which memory is read,
  // and only norms need them.
  squares,
};

// What is noted of a tile of group 1.
struct Screened {
  double largest;  // |value|
  // Sum of value^2, in a fixed order; infinite only for f64 beyond 2^511. NaN unless asked for,
  // so that nobody takes it for a norm.
  double squares;
};

class ResidentTensors;
class SubsampledValues;

class UpdateReader {
 public:
  virtual ~UpdateReader() = default;

  // Checks a tile of group 1. Throws PeerError or DecodeError if a value is not finite or
  // beyond its tensor's dtype, or a gap is not zero.
  virtual Screened screen(const Tile& tile, const std::string& site, Screening screening) const = 0;

  // sums[i] += round(value i * factor), ties to even, for a tile that was screened. int8
  // values are code * round(scale * factor) instead: exact products, one rounding per block.
  virtual void add(const Tile& tile, double factor, std::uint64_t* sums) const = 0;

  // The values of a part of the tile where they lie, if they lie there as floats; else null.
  virtual const WireFloat* floats(const Tile& tile, const TensorPart& part) const = 0;

  // Whether add() has to be given whole tiles, because a part costs as much.
  virtual bool adds_whole_tiles() const { return false; }

  // The tile's codes, if it is kept encoded and not as floats; else nothing.
  virtual std::optional<CodedTile> coded(const Tile&) const { return std::nullopt; }

  // The codes of an update of which only some blocks travelled; else null.
  virtual const SubsampledValues* subsampled() const { return nullptr; }

  // The tensors of group 1 on a device, if they lie there; else null.
  virtual const ResidentTensors* resident() const { return nullptr; }

  // The values of a tile of group 1, each rounded once: to float, or to double, which holds
  // the tensors of every layout exactly. Codes are rounded to float first either way.
  virtual void values(const Tile& tile, std::span<float> out) const = 0;
  virtual void values(const Tile& tile, std::span<double> out) const = 0;

  // Values of a tile of group 2. Throws as screen().
  virtual void read(const Tile& tile, const std::string& site,
                    std::span<std::int64_t> values) const = 0;
};

// Whether updates of the layout need double to be held exactly: it has an f64 tensor.
bool needs_double(const Layout& layout);

// Readers refer to their arguments, which must outlive them.

// Tensors in memory.
std::unique_ptr<UpdateReader> read_tensors(const Layout& layout, TensorData tensors);

// The kept form of tensors: group 1 as one vector of f32, or of f64 if the layout has an f64
// tensor, so that nothing is lost; then group 2 as i64.
std::size_t kept_bytes(const Layout& layout);
// Copies a tile of either group to its place in the kept form; group 1 is screened meanwhile.
class StoredBytes;
Screened keep_floats(const Layout& layout, TensorData tensors, const Tile& tile,
                     const std::string& site, Screening screening, StoredBytes& kept);
void keep_integers(const Layout& layout, TensorData tensors, const Tile& tile,
                   const std::string& site, StoredBytes& kept);
std::unique_ptr<UpdateReader> read_kept(const Layout& layout, std::span<const std::byte> kept);

// Chunks that check_update has passed.
std::unique_ptr<UpdateReader> read_chunks(const Layout& layout, std::vector<ChunkView> chunks,
                                          const UpdateForm& form);

}  // namespace veilsum
