// What kernels that read codes have in common: scales, and values of a code that element functions
// give.
#pragma once

#include <cstdint>

#include "device.h"
#include "device/mean_launchers.h"
#include "element/code_tables.h"
#include "element/fp8.h"
#include "element/half.h"
#include "element/quotient.h"

namespace veilsum {
namespace {

// Coordinates, as a shift, that share a scale; those of a whole tile if there is none.
inline unsigned scale_shift_of(unsigned scale_block) {
  return scale_block == 0 ? 12 : static_cast<unsigned>(top_bit(scale_block));
}

// Scale of value number `at`. `scales` is a reference, and read only where there are scales: by
// value it is read first, for which kernels at the end of their registers have no room.
__device__ __forceinline__ float load_scale(WindowScales format, const unsigned char* const& scales,
                                            unsigned at, unsigned shift) {
  if (format == WindowScales::none) return 1;
  const unsigned number = at >> shift;
  if (format == WindowScales::f32) return load_global<float>(scales + 4 * number);
  return widen_half(load_global<std::uint16_t>(scales + 2 * number));
}

struct WidenHalf {
  VS_FN float widen(std::uint16_t pattern) { return widen_half(pattern); }
};
struct WidenBrain {
  VS_FN float widen(std::uint16_t pattern) { return widen_brain(pattern); }
};

// Rounded to float.
template <class Format>
__device__ __forceinline__ float fp8_value(std::uint8_t pattern, float scale) {
  return widen_fp8<Format>(pattern) * scale;
}

}  // namespace
}  // namespace veilsum
