// How an update is cut and coded, from Python arguments.
#pragma once

#include "bindings/chunks.h"
#include "bindings/rotation.h"
#include "update/form.h"

namespace veilsum {

// `transform` may be None.
inline UpdateForm to_form(py::handle codec, double scale, py::handle plan_digest,
                          py::handle update_id, py::handle chunk_coordinates,
                          py::handle transform) {
  return {to_integer<std::uint16_t>("codec", codec),
          scale,
          to_plan_tag(plan_digest),
          to_integer<std::uint64_t>("update_id", update_id),
          to_integer<std::uint64_t>("chunk_coordinates", chunk_coordinates),
          to_transform(transform)};
}

}  // namespace veilsum
