// Rotations and transforms from Python arguments.
#pragma once

#include <cstring>
#include <memory>

#include "bindings/arrays.h"
#include "codec/transform.h"

namespace veilsum {

// `key` is 8 public bytes.
inline Rotation to_rotation(py::handle block, py::handle key, std::uint32_t group) {
  const BufferView bytes = fixed_bytes("rotation key", key, sizeof(PhiloxKey));
  Rotation rotation{to_integer<std::size_t>("block", block), {}, group};
  std::memcpy(&rotation.key, bytes.bytes().data(), sizeof rotation.key);
  require_rotation_block(rotation.block);
  return rotation;
}

// None, or what bindings/register_rotation.cpp makes.
inline std::shared_ptr<const Transform> to_transform(py::handle transform) {
  if (transform.is_none()) return nullptr;
  return std::make_shared<const Transform>(instance<Transform>("transform", transform));
}

}  // namespace veilsum
