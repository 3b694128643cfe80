#include "aggregate/mean_sink.h"

#include <array>
#include <cstddef>

#include "aggregate/write_means.h"
#include "base/error.h"

namespace veilsum {

void MeanWriter::floats(const Tile& tile, const std::uint64_t* sums,
                        const MeanDivisor& divisor) const {
  write_float_means(layout_, tile, sums, divisor, tensors_);
}

void MeanWriter::means(const Tile& tile, const float* values) const {
  write_values(layout_, tile, values, tensors_);
}

void MeanWriter::means(const Tile& tile, const double* values) const {
  write_values(layout_, tile, values, tensors_);
}

void MeanWriter::integers(const Tile& tile, const __int128* sums,
                          std::uint64_t total_weight) const {
  write_integer_means(layout_, tile, sums, total_weight, tensors_);
}

ModelStepper::ModelStepper(const Layout& layout, const ServerStep& step) : step_(step) {
  if (step.layout().canonical_bytes() != layout.canonical_bytes())
    throw ConfigError("the optimizer is for a model with another layout");
}

void ModelStepper::floats(const Tile& tile, const std::uint64_t* sums,
                          const MeanDivisor& divisor) const {
  const auto* signed_sums = reinterpret_cast<const std::int64_t*>(sums);
  const Layout& layout = step_.layout();
  for_each_part(layout, kFloatGroup, tile.first, tile.count, [&](const TensorPart& part) {
    alignas(64) std::array<std::byte, kTile * sizeof(double)> means;
    write_means({signed_sums + part.offset, part.count}, divisor,
                layout.tensors()[part.tensor].dtype, means.data());
    step_.apply(part, means.data());
  });
}

template <class Value>
void ModelStepper::step_by(const Tile& tile, const Value* values) const {
  const Layout& layout = step_.layout();
  for_each_part(layout, kFloatGroup, tile.first, tile.count, [&](const TensorPart& part) {
    alignas(64) std::array<std::byte, kTile * sizeof(double)> means;
    write_values(layout.tensors()[part.tensor].dtype, {values + part.offset, part.count},
                 means.data());
    step_.apply(part, means.data());
  });
}

void ModelStepper::means(const Tile& tile, const float* values) const { step_by(tile, values); }

void ModelStepper::means(const Tile& tile, const double* values) const { step_by(tile, values); }

void ModelStepper::integers(const Tile& tile, const __int128* sums,
                            std::uint64_t total_weight) const {
  const Layout& layout = step_.layout();
  for_each_part(layout, kIntegerGroup, tile.first, tile.count, [&](const TensorPart& part) {
    std::array<std::byte, kTile * sizeof(std::int64_t)> means;
    write_integers(sums + part.offset, part.count, total_weight,
                   layout.tensors()[part.tensor].dtype, means.data());
    step_.apply(part, means.data());
  });
}

}  // namespace veilsum
