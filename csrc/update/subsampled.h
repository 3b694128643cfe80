// Subsampled updates: the kept blocks are an update of a smaller model, in any codec that
// require_subsample_codec() allows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "codec/gather.h"
#include "update/encode.h"
#include "update/form.h"
#include "update/value_codec.h"

namespace veilsum {

// Fills the chunks of group 1. Throws as encode_update; also if a value does not fit its tensor
// once it is rescaled.
void encode_subsampled(const Layout& layout, TensorData tensors, const EncodePlan& plan,
                       const ChunkGrid& grid, std::span<std::byte* const> chunks);

// Values of the checked chunks of a subsampled update, which begin with those of group 1. Refers
// to its arguments.
class SubsampledValues {
 public:
  SubsampledValues(const Layout& layout, std::span<const ChunkView> chunks, const UpdateForm& form);

  // Of coordinates first .. first + out.size() - 1, which lie in one tile: kept ones as they
  // decode, times the gain in double, rounded once; zeros elsewhere.
  void read(std::uint64_t first, std::span<float> out) const;

  // For those who decode by themselves: what the codes of the kept blocks mean, and how many of a
  // whole tile's blocks are kept.
  const UpdateForm& coded_form() const { return coded_; }
  unsigned keep() const { return subsample_.keep; }
  // The tile that begins at a coordinate, and where its codes lie.
  KeptTile tile(std::uint64_t first) const;
  // Calls use(run, offset of its first coordinate) for the runs of a tile's kept blocks that lie
  // in one chunk each. None of the codecs mixes more than a block, so that a decoder takes any run
  // of blocks for a tile.
  template <class Use>
  void for_each_run(const KeptTile& tile, const Use& use) const {
    for (std::size_t done = 0; done < tile.count;) {
      const CodedTile run = run_at(tile.coded + done, tile.count - done);
      use(run, done);
      done += run.count;
    }
  }

 private:
  void read_tile(const KeptTile& tile, std::span<float> out) const;
  // At most `most` coordinates of the coded grid.
  CodedTile run_at(std::uint64_t coded, std::size_t most) const;

  const Layout& layout_;
  const std::span<const ChunkView> chunks_;
  const Subsample subsample_;
  const UpdateForm coded_;  // of the kept blocks, as if they were everything
};

}  // namespace veilsum
