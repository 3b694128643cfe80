// Kernels over tensors that lie in device memory, tile by tile of the coordinate grid.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/launch.h"
#include "device/mean_launchers.h"

namespace veilsum {

// One floating-point tensor. Its values are C-contiguous, on a multiple of their size.
struct DeviceTensor {
  const unsigned char* data;
  std::uint64_t first;  // coordinate of its first element, a multiple of 64
  std::uint64_t elements;
  MeanFormat format;  // of its values
};

// The tensors of group 1 that have elements, ascending; in device memory.
struct DeviceTensors {
  const DeviceTensor* tensor;
  std::size_t count;
  std::uint64_t size;  // coordinates of the group
};

// What arrival notes of `tiles` tiles from the first of the group on, one entry per tile.
struct TensorScreening {
  DeviceTensors tensors;
  std::size_t tiles;
  std::uint64_t* largest;  // pattern, as a double, of the largest |value|
  double* squares;         // sum of squares, in the order of CodecKernels::screen_f32; null: none
};

// Values of a tile; zeros where there is no tensor.
struct GatheredTile {
  std::size_t tile;
  unsigned char* values;    // kTile of them
  std::uint64_t limit = 0;  // pattern, as a double, of the largest |value| screened
};
struct TensorGather {
  DeviceTensors tensors;
  std::size_t count;
  const GatheredTile* tile;  // in device memory
  WindowCodes codes;         // f32 or f64; f16 or bf16 if all tensors are
  // Set to 1 if a value is beyond its tile's limit; null: limits are not looked at.
  std::uint32_t* beyond = nullptr;
};

struct TensorLaunchers {
  int (*screen)(const Launch& launch, const TensorScreening& screening);
  int (*gather)(const Launch& launch, const TensorGather& gather);
};

}  // namespace veilsum
