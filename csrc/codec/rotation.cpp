#include "codec/rotation.h"

#include <algorithm>
#include <string>

#include "base/error.h"
#include "element/rotation.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

void transform(float* values, std::size_t block) { kernels().rotation.hadamard_f32(values, block); }
void transform(double* values, std::size_t block) {
  kernels().rotation.hadamard_f64(values, block);
}

void flip_signs(const Rotation& rotation, std::uint64_t first, std::span<float> values) {
  kernels().rotation.flip_signs_f32(values.data(), values.size(), first, rotation.group,
                                    rotation.key);
}
void flip_signs(const Rotation& rotation, std::uint64_t first, std::span<double> values) {
  kernels().rotation.flip_signs_f64(values.data(), values.size(), first, rotation.group,
                                    rotation.key);
}

template <class Value>
void transform_blocks(std::size_t block, std::span<Value> values) {
  for (std::size_t tile = 0; tile < values.size(); tile += kRotationTile) {
    const std::size_t end = std::min(tile + kRotationTile, values.size());
    for (std::size_t begin = tile; begin < end;) {
      const std::size_t size = next_rotation_block(block, end - begin);
      transform(values.data() + begin, size);
      begin += size;
    }
  }
}

template <class Value>
void rotate_values(const Rotation& rotation, std::uint64_t first, std::span<Value> values) {
  if (rotation.block == 0) return;
  flip_signs(rotation, first, values);
  transform_blocks(rotation.block, values);
}

template <class Value>
void unrotate_values(const Rotation& rotation, std::uint64_t first, std::span<Value> values) {
  if (rotation.block == 0) return;
  transform_blocks(rotation.block, values);
  flip_signs(rotation, first, values);
}

}  // namespace

void require_rotation_block(std::size_t block) {
  if (block != 0 && !is_rotation_block(block))
    throw ConfigError(
        "a rotation mixes 64, 256, 1024 or 4096 coordinates, not " + std::to_string(block),
        "use 4096, or 0 for none");
}

void rotate(const Rotation& rotation, std::uint64_t first, std::span<float> values) {
  rotate_values(rotation, first, values);
}
void rotate(const Rotation& rotation, std::uint64_t first, std::span<double> values) {
  rotate_values(rotation, first, values);
}
void unrotate(const Rotation& rotation, std::uint64_t first, std::span<float> values) {
  unrotate_values(rotation, first, values);
}
void unrotate(const Rotation& rotation, std::uint64_t first, std::span<double> values) {
  unrotate_values(rotation, first, values);
}

}  // namespace veilsum
