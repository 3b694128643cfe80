// Which values a tensor and a mean can hold.
#pragma once

#include <cstdint>

#include "codec/gather.h"

namespace veilsum {

// Smallest magnitude that a dtype rounds to infinity; infinity itself for f64.
double overflow_threshold(DType dtype);

// Throws the ConfigError for tensors of which some value is not finite or too large for
// the codec: the first such tensor and how many of its values.
[[noreturn]] void refuse_values(const Layout& layout, TensorData tensors, std::uint16_t codec);

// How many values of one tensor are not finite.
std::uint64_t count_not_finite(const Tensor& tensor, const std::byte* values);

}  // namespace veilsum
