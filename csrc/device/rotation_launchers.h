// The rotation (codec/rotation.h) on a device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/launch.h"
#include "element/philox.h"

namespace veilsum {

struct RotateValues {
  void* values;  // floats, or doubles if `wide`; device memory, 16-byte aligned
  bool wide;
  std::size_t count;    // a multiple of 64
  std::uint64_t first;  // coordinate of the first value, a multiple of 4096
  std::uint32_t group;
  unsigned block;  // 64, 256, 1024 or 4096
  PhiloxKey key;
  bool inverse;
};

struct RotationLaunchers {
  // In place: one read and one write of the values.
  int (*rotate)(const Launch& launch, const RotateValues& job);
};

}  // namespace veilsum
