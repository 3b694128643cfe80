// Subsampled updates: the kept blocks are an update of a smaller model, in any codec that
// require_subsample_codec() allows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "codec/gather.h"
#include "update/encode.h"
#include "update/form.h"

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

 private:
  void read_tile(const KeptTile& tile, std::span<float> out) const;
  void decode(std::uint64_t coded, std::span<float> values) const;

  const Layout& layout_;
  const std::span<const ChunkView> chunks_;
  const Subsample subsample_;
  const UpdateForm coded_;  // of the kept blocks, as if they were everything
};

}  // namespace veilsum
