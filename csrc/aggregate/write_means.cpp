#include "aggregate/write_means.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include "base/error.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

void narrow_values(DType dtype, std::span<const float> values, std::byte* out) {
  const auto& codec = kernels().codec;
  if (dtype == DType::f16)
    return codec.narrow_f16(values.data(), values.size(), reinterpret_cast<WireHalf*>(out));
  if (dtype == DType::bf16)
    return codec.narrow_bf16(values.data(), values.size(), reinterpret_cast<WireHalf*>(out));
  std::memcpy(out, values.data(), values.size_bytes());
}

// What a narrower tensor holds is exact in float, and so is the mean of two such values up to a
// bit that can not decide a tie: going over float rounds as if once.
void narrow_values(DType dtype, std::span<const double> values, std::byte* out) {
  if (dtype == DType::f64) {
    std::memcpy(out, values.data(), values.size_bytes());
    return;
  }
  std::array<float, kTile> narrow;
  std::transform(values.begin(), values.end(), narrow.begin(),
                 [](double value) { return static_cast<float>(value); });
  narrow_values(dtype, std::span<const float>(narrow.data(), values.size()), out);
}

template <class Value>
void write_parts(const Layout& layout, const Tile& tile, const Value* values,
                 MutableTensorData tensors) {
  for_each_part(layout, kFloatGroup, tile.first, tile.count, [&](const TensorPart& part) {
    const DType dtype = layout.tensors()[part.tensor].dtype;
    narrow_values(dtype, std::span<const Value>(values + part.offset, part.count),
                  tensors[part.tensor] + part.element * dtype_size(dtype));
  });
}

}  // namespace

void require_updates(std::uint64_t total_weight) {
  if (total_weight == 0) throw ConfigError("there is no mean of no updates", "add one first");
}

void write_float_means(const Layout& layout, const Tile& tile, const std::uint64_t* sums,
                       const MeanDivisor& divisor, MutableTensorData tensors) {
  const auto* signed_sums = reinterpret_cast<const std::int64_t*>(sums);
  for_each_part(layout, kFloatGroup, tile.first, tile.count, [&](const TensorPart& part) {
    const DType dtype = layout.tensors()[part.tensor].dtype;
    write_means({signed_sums + part.offset, part.count}, divisor, dtype,
                tensors[part.tensor] + part.element * dtype_size(dtype));
  });
}

void write_values(const Layout& layout, const Tile& tile, const float* values,
                  MutableTensorData tensors) {
  write_parts(layout, tile, values, tensors);
}

void write_values(const Layout& layout, const Tile& tile, const double* values,
                  MutableTensorData tensors) {
  write_parts(layout, tile, values, tensors);
}

void write_values(DType dtype, std::span<const float> values, std::byte* out) {
  narrow_values(dtype, values, out);
}

void write_values(DType dtype, std::span<const double> values, std::byte* out) {
  narrow_values(dtype, values, out);
}

// Keeping the low bytes is exact: a mean lies between the smallest and the largest value, and
// those fit the dtype.
void write_integers(const __int128* sums, std::size_t count, std::uint64_t total_weight,
                    DType dtype, std::byte* out) {
  const std::size_t size = dtype_size(dtype);
  for (std::size_t i = 0; i < count; ++i) {
    const auto mean = static_cast<std::int64_t>(round_integer_mean(sums[i], total_weight));
    std::memcpy(out + i * size, &mean, size);
  }
}

void write_integer_means(const Layout& layout, const Tile& tile, const __int128* sums,
                         std::uint64_t total_weight, MutableTensorData tensors) {
  for_each_part(layout, kIntegerGroup, tile.first, tile.count, [&](const TensorPart& part) {
    const DType dtype = layout.tensors()[part.tensor].dtype;
    write_integers(sums + part.offset, part.count, total_weight, dtype,
                   tensors[part.tensor] + part.element * dtype_size(dtype));
  });
}

}  // namespace veilsum
