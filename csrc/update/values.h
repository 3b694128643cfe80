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

// Throws the ConfigError for a tensor of which so many values are not finite.
[[noreturn]] void refuse_not_finite(const Tensor& tensor, std::uint64_t count);

// How many values of one tensor have a magnitude above `most`, or none at all (NaN).
std::uint64_t count_beyond(const Tensor& tensor, const std::byte* values, double most);

// Largest magnitude a float tensor may be sent with. Half-way between the dtype's largest
// number and where rounding turns infinite: coded values may pass the former by a rounding,
// and their mean must stay below the latter.
double sent_limit(DType dtype);

// How many values of one tensor are not finite.
std::uint64_t count_not_finite(const Tensor& tensor, const std::byte* values);

}  // namespace veilsum
