#include "aggregate/write_means.h"

#include <cstring>
#include <span>

#include "base/error.h"

namespace veilsum {

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
