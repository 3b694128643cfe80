#include "device/device_rotation.h"

#include <algorithm>

#include "element/rotation.h"

namespace veilsum {
namespace {

constexpr std::size_t kPieceTiles = 1024;  // that are on the device at once

template <class Value>
void rotate_pieces(const Device& device, const Rotation& rotation, bool inverse,
                   std::uint64_t first, std::span<Value> values) {
  if (rotation.block == 0 || values.empty()) return;
  const OnDevice on(device);
  const DeviceStream stream(device);
  const std::size_t piece = std::min(values.size(), kPieceTiles * kRotationTile);
  const DeviceBuffer room(stream, piece * sizeof(Value));
  for (std::size_t begin = 0; begin < values.size(); begin += piece) {
    const auto some = values.subspan(begin, std::min(piece, values.size() - begin));
    stream.to_device(room.as<void>(), some.data(), some.size_bytes());
    const int status =
        device.api().rotation->rotate(stream.launch(), {.values = room.as<void>(),
                                                        .wide = sizeof(Value) == 8,
                                                        .count = some.size(),
                                                        .first = first + begin,
                                                        .group = rotation.group,
                                                        .block = unsigned(rotation.block),
                                                        .key = rotation.key,
                                                        .inverse = inverse});
    device.check(status, "launching a rotation", some.size_bytes());
    stream.to_host(some.data(), room.as<void>(), some.size_bytes());
  }
  stream.synchronize();
}

}  // namespace

void rotate_on(const Device& device, const Rotation& rotation, bool inverse, std::uint64_t first,
               std::span<float> values) {
  rotate_pieces(device, rotation, inverse, first, values);
}
void rotate_on(const Device& device, const Rotation& rotation, bool inverse, std::uint64_t first,
               std::span<double> values) {
  rotate_pieces(device, rotation, inverse, first, values);
}

}  // namespace veilsum
