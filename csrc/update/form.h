// What fixes how a whole update is cut into chunks and what its codes mean.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "codec/chunk.h"
#include "codec/layout.h"
#include "codec/transform.h"

namespace veilsum {

struct UpdateForm {
  std::uint16_t codec;  // of group 1; group 2 always travels as i64
  double scale;         // steps per unit; ring codecs without a table of scales, else 0
  PlanTag plan;
  std::uint64_t update_id;
  std::uint64_t chunk_coordinates;
  std::shared_ptr<const Transform> transform = nullptr;
};

// Throws ConfigError if the codec cannot carry an update in the clear, the scale does not
// go with it, or chunk_coordinates is not allowed.
void require_form(const UpdateForm& form);

// Throws ConfigError if a block of the codec would reach from one tensor of group 1 into the
// next: then a scale would say something about two tensors.
void require_blocks_fit(const Layout& layout, std::uint16_t codec);

// Whether gaps between tensors hold whatever a rotation leaves there, instead of zeros.
bool is_rotated(const UpdateForm& form);

// Whether only some blocks of group 1 travel.
bool is_subsampled(const UpdateForm& form);

// The chunks of one group of a plain update.
ChunkGrid update_grid(const Layout& layout, const UpdateForm& form, int group);

// Chunks of both groups.
std::size_t count_chunks(const Layout& layout, const UpdateForm& form);

}  // namespace veilsum
