// Kernels of the server optimizers: a window of means steps model and moments.
//
// All pointers are to device memory. Values lie at multiples of their size.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/launch.h"
#include "device/mean_launchers.h"
#include "element/optimizer.h"

namespace veilsum {

// What a window has of one tensor. Arrays begin at the part's first element; moments are doubles
// for doubles and floats otherwise, and those that the optimizer does not keep are null.
struct StepPart {
  std::uint32_t offset;  // in the window, a multiple of 64
  std::uint32_t count;
  MeanFormat format;
  const unsigned char* model;
  unsigned char* first;
  unsigned char* second;
  unsigned char* updated;  // may be `model`
};

inline constexpr std::uint32_t kNoPart = 0xFFFFFFFFu;

struct WindowStep {
  OptimizerKind kind;
  OptimizerRule rule;
  std::size_t tiles;
  const StepPart* part;
  std::uint32_t parts;
  const std::uint32_t* part_of;  // one per 64 coordinates; kNoPart where there is no tensor
  const void* means;             // as WindowMeans has them
  bool wide;
  // 0, or set to parts - k for the first part k that has a new value or moment that does not fit.
  std::uint32_t* unfit;
};

struct StepLaunchers {
  int (*step_window)(const Launch& launch, const WindowStep& step);
};

}  // namespace veilsum
