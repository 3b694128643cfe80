// Kernels of the exact mean: tiles of committed updates are decoded, weighed and summed in one
// pass, with the sums in registers.
//
// All pointers are to device memory, 16-byte aligned. A window is some whole tiles of group 1, one
// after the other; each tile of each update lies anywhere, the last one padded to whole.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/launch.h"
#include "element/quotient.h"

namespace veilsum {

// How values of a window are kept. Numbers of the table of kernels.
enum class WindowCodes : std::uint8_t {
  f32,
  f64,
  f16,
  bf16,
  int8,
  int4,
  nf4,
  fp4,
  fp8_e4m3,
  fp8_e5m2,
  sign,
};
inline constexpr std::size_t kWindowCodes = 11;

enum class WindowScales : std::uint8_t { none, f32, f16 };

// One update's tile, and how much it counts.
struct alignas(16) WindowTerm {
  const unsigned char* codes;
  const unsigned char* scales;
  double factor;        // weight * 2^s; 0 for a tile of zeros
  std::uint64_t limit;  // pattern of the largest |value| screened: a double of f64, else a float
};

// What divides the sums of a tile.
struct TileDivisor {
  double reciprocal;  // of the total weight * 2^s, rounded once
  int scale;          // s
};

// Format of each 64 coordinates' means.
enum class MeanFormat : std::uint8_t { f32, f16, bf16, f64 };

// Updates of one kind, the same `tiles` tiles of each.
struct WindowSum {
  WindowCodes kind;
  WindowScales scale_format;
  unsigned scale_block;  // coordinates that share a scale, a power of two from 32 on
  std::size_t updates;
  std::size_t tiles;
  const WindowTerm* term;  // tile by tile, one per update
  bool first;              // sums start at 0, not at what is there
  std::uint64_t* sums;     // one per coordinate
  std::uint32_t* beyond;   // set to 1 if a value of a float format is beyond its limit
};

struct WindowMeans {
  std::size_t tiles;
  std::uint64_t total_weight;
  const TileDivisor* divisor;  // one per tile
  const MeanFormat* format;    // one per 64 coordinates
  const std::uint64_t* sums;   // one per coordinate
  void* means;                 // floats, or doubles if `wide`
  bool wide;
};

struct MeanLaunchers {
  int (*sum_window)(const Launch& launch, const WindowSum& sum);
  int (*take_means)(const Launch& launch, const WindowMeans& means);
  // Both in one pass: the sums stay in registers. `sum.sums` is only read, unless sum.first.
  int (*mean_window)(const Launch& launch, const WindowSum& sum, const WindowMeans& means);
};

}  // namespace veilsum
