// The sections of an eden chunk: a scale per rotation block, and codes (docs/format.md).
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/chunk.h"
#include "codec/rotation.h"
#include "element/rotation.h"

namespace veilsum {

// The rotation of an update's own.
Rotation eden_rotation(const ChunkHeader& header);

// Coordinates that codes are written for: a tile's rotation is made of blocks of 64 and more.
inline std::uint64_t eden_padded(std::uint64_t count) {
  return (count + kSmallestRotation - 1) / kSmallestRotation * kSmallestRotation;
}

// Calls use(block number, first coordinate, coordinates) for the rotation blocks of a chunk.
template <class Use>
void for_each_eden_block(std::uint64_t count, Use&& use) {
  const std::uint64_t end = eden_padded(count);
  std::size_t number = 0;
  for (std::uint64_t begin = 0; begin < end;) {
    const std::size_t size = next_rotation_block(kRotationTile, end - begin);
    use(number++, static_cast<std::size_t>(begin), size);
    begin += size;
  }
}

}  // namespace veilsum
