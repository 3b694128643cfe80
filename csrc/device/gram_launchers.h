// Kernels of inner products. All pointers are to device memory, 16-byte aligned.
#pragma once

#include <cstddef>

#include "device/launch.h"

namespace veilsum {

// Tiles whose products are added in double, in one order; ranges of them are added on the host.
inline constexpr std::size_t kGramRangeTiles = 16;

// One update's values of a window, as of order_launchers.h, and what brings them below 1.
struct GramRow {
  const unsigned char* values;
  double factor;  // a power of two
};

// What csrc/kernels/order_kernels.h says of inner products, for every range of a window, which
// starts at one. Each has a place for every pair of rows i >= j, at i * (i + 1) / 2 + j.
struct WindowGram {
  bool wide;
  std::size_t tiles;
  std::size_t rows;
  const GramRow* row;
  bool first;  // sums start at 0, not at what is there: a range may come in several windows
  double* gram;
};

struct GramLaunchers {
  int (*add_window)(const Launch& launch, const WindowGram& window);
};

}  // namespace veilsum
