// Where the means of a pass go.
#pragma once

#include <cstdint>

#include "aggregate/rounding.h"
#include "aggregate/tiles.h"
#include "codec/gather.h"
#include "codec/layout.h"
#include "optimize/server_step.h"

namespace veilsum {

// Takes the sums of one tile at a time, from several threads.
class MeanSink {
 public:
  virtual ~MeanSink() = default;
  // Of group 1.
  virtual void floats(const Tile& tile, const std::uint64_t* sums,
                      const MeanDivisor& divisor) const = 0;
  // The same, when sums were divided already: means, each rounded once to its tensor's dtype.
  virtual void means(const Tile& tile, const float* values) const = 0;
  virtual void means(const Tile& tile, const double* values) const = 0;
  // Of group 2.
  virtual void integers(const Tile& tile, const __int128* sums,
                        std::uint64_t total_weight) const = 0;
};

// Writes each mean, rounded once to its tensor's dtype.
class MeanWriter final : public MeanSink {
 public:
  // Refers to its arguments.
  MeanWriter(const Layout& layout, MutableTensorData tensors)
      : layout_(layout), tensors_(tensors) {}
  void floats(const Tile& tile, const std::uint64_t* sums,
              const MeanDivisor& divisor) const override;
  void means(const Tile& tile, const float* values) const override;
  void means(const Tile& tile, const double* values) const override;
  void integers(const Tile& tile, const __int128* sums, std::uint64_t total_weight) const override;

 private:
  const Layout& layout_;
  const MutableTensorData tensors_;
};

// Steps the model by each mean, rounded like MeanWriter's, while it is in the cache: the bits of
// the two one after the other.
class ModelStepper final : public MeanSink {
 public:
  // Refers to the step. Throws ConfigError if it is for a model of another layout.
  ModelStepper(const Layout& layout, const ServerStep& step);
  void floats(const Tile& tile, const std::uint64_t* sums,
              const MeanDivisor& divisor) const override;
  void means(const Tile& tile, const float* values) const override;
  void means(const Tile& tile, const double* values) const override;
  void integers(const Tile& tile, const __int128* sums, std::uint64_t total_weight) const override;

 private:
  template <class Value>
  void step_by(const Tile& tile, const Value* values) const;

  const ServerStep& step_;
};

}  // namespace veilsum
