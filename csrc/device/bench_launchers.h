// A kernel that only computes: what it reaches is the ceiling of kernels that mix integers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/launch.h"

namespace veilsum {

// Operations of a thread and turn: four chains that do not wait for each other.
inline constexpr unsigned kMixOperations = 4 * 3;

struct MixJob {
  std::size_t threads;  // a word of `results` each
  unsigned turns;
  std::uint32_t* results;
};

struct BenchLaunchers {
  int (*mix)(const Launch& launch, const MixJob& job);
};

}  // namespace veilsum
