// From sums of a tile to a result's tensors.
#pragma once

#include <cstddef>
#include <cstdint>

#include <span>

#include "aggregate/rounding.h"
#include "aggregate/update_reader.h"
#include "codec/gather.h"
#include "codec/layout.h"

namespace veilsum {

// Writes the means of a tile of group 1, each rounded once to its tensor's dtype.
void write_float_means(const Layout& layout, const Tile& tile, const std::uint64_t* sums,
                       const MeanDivisor& divisor, MutableTensorData tensors);

// Writes values of a tile of group 1, each rounded once to its tensor's dtype. Doubles are values
// of the layout, or means of two of them rounded once.
void write_values(const Layout& layout, const Tile& tile, const float* values,
                  MutableTensorData tensors);
void write_values(const Layout& layout, const Tile& tile, const double* values,
                  MutableTensorData tensors);
// Of one tensor.
void write_values(DType dtype, std::span<const float> values, std::byte* out);
void write_values(DType dtype, std::span<const double> values, std::byte* out);

// sums / total_weight to the nearest integers, ties to even, as bytes of an integer dtype.
void write_integers(const __int128* sums, std::size_t count, std::uint64_t total_weight,
                    DType dtype, std::byte* out);

// The same for group 2: to the nearest integer, ties to even.
void write_integer_means(const Layout& layout, const Tile& tile, const __int128* sums,
                         std::uint64_t total_weight, MutableTensorData tensors);

// Throws ConfigError if there is nothing to take a mean of.
void require_updates(std::uint64_t total_weight);

}  // namespace veilsum
