// What a mean update does to the model: one step of a server optimizer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "codec/gather.h"
#include "codec/layout.h"
#include "kernels/optimizer_kernels.h"

namespace veilsum {

// Throws ConfigError, naming the known ones.
OptimizerKind optimizer_kind(std::string_view name);
bool has_first_moment(OptimizerKind kind);
bool has_second_moment(OptimizerKind kind);

// The dtype in which a tensor's moments are kept: f64 for f64, else f32.
DType moment_dtype(DType dtype);

// What a kind does not use is not looked at.
struct OptimizerSettings {
  double learning_rate;
  double gain;  // multiplies the mean before anything else
  double beta1;
  double beta2;
  double tau;
};

// The arrays of one step, a place per tensor of the layout. Moments of integer tensors, and
// moments that the kind does not have, have none (null).
struct StepTensors {
  TensorData model;
  MutableTensorData first;
  MutableTensorData second;
  MutableTensorData updated;  // may be `model` itself
};

// Which arrays of floating-point tensors lie in the memory of a device, one device for all; those
// of integer tensors never do.
struct StepResidence {
  bool model = false;
  bool moments = false;
  bool updated = false;

  bool any() const { return model || moments || updated; }
};

// Steps any part of any tensor, from several threads: coordinates are independent. The result
// is a function of the arguments to the last bit. Refers to layout and tensors.
class ServerStep {
 public:
  ServerStep(const Layout& layout, OptimizerKind kind, const OptimizerSettings& settings,
             const StepTensors& tensors, const StepResidence& resident = {});

  const Layout& layout() const { return layout_; }
  OptimizerKind kind() const { return kind_; }
  const OptimizerRule& rule() const { return rule_; }
  const StepTensors& tensors() const { return tensors_; }
  const StepResidence& resident() const { return resident_; }

  // `mean` holds the part's values, in the tensor's dtype, at any address. Moments of the part
  // are changed in place. Integer tensors add their mean, whatever the rule.
  //
  // Throws ConfigError if a new value or moment does not fit; the part is then worthless. The
  // same for floating-point tensors that a device holds: they are stepped there.
  void apply(const TensorPart& part, const std::byte* mean) const;

  // Throws the ConfigError for a new value or moment of a tensor that does not fit.
  [[noreturn]] void refuse(std::size_t tensor) const;

 private:
  void apply_floats(const TensorPart& part, const std::byte* mean) const;
  void apply_halves(const TensorPart& part, const std::byte* mean) const;
  void apply_doubles(const TensorPart& part, const std::byte* mean) const;
  void apply_integers(const TensorPart& part, const std::byte* mean) const;

  const Layout& layout_;
  OptimizerKind kind_;
  OptimizerRule rule_;
  StepTensors tensors_;
  StepResidence resident_;
};

// Steps the whole model. Throws as apply().
void step_model(const ServerStep& step, TensorData mean, unsigned threads);

}  // namespace veilsum
