// What is done to the values of group 1 between a tensor and its codes, beyond one scale: all of
// it public, and the same for every site of a round.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "codec/chunk.h"
#include "codec/rotation.h"
#include "codec/step_scales.h"
#include "codec/subsample.h"

namespace veilsum {

// A rotation, a table of scales or both, which only ring codecs have; or a subsample alone.
struct Transform {
  Rotation rotation{};
  double rotated_limit = 0;       // largest |rotated value| in steps; with a rotation only
  std::optional<ScaleGrid> grid;  // none: one scale for all
  std::vector<double> scales;     // steps per unit, one per entry of the grid
  std::vector<double> limits;     // largest |value|, likewise; none with a rotation
  std::optional<Subsample> subsample;

  std::uint16_t chunk_flags() const {
    if (subsample) return kChunkSubsampled;
    return rotation.block != 0 ? kChunkRotated : std::uint16_t{0};
  }
};

}  // namespace veilsum
