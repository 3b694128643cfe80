// Values of tensors in device memory.
#pragma once

#include "device.h"
#include "device/mean_launchers.h"
#include "element/half.h"

namespace veilsum {
namespace {

// Of any format but f64, exact.
__device__ __forceinline__ float load_narrow(const unsigned char* values, MeanFormat format,
                                             std::uint64_t element) {
  if (format == MeanFormat::f32) return load_global<float>(values + 4 * element);
  const auto pattern = load_global<std::uint16_t>(values + 2 * element);
  return format == MeanFormat::f16 ? widen_half(pattern) : widen_brain(pattern);
}

// Exact.
__device__ __forceinline__ double load_wide(const unsigned char* values, MeanFormat format,
                                            std::uint64_t element) {
  if (format == MeanFormat::f64) return load_global<double>(values + 8 * element);
  return load_narrow(values, format, element);
}

}  // namespace
}  // namespace veilsum
