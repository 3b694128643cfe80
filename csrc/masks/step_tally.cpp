#include "masks/step_tally.h"

#include <cstdio>
#include <string>

#include "base/error.h"

namespace veilsum {
std::string to_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

StepTally::StepTally(const Layout& layout, const StepPlan& steps)
    : layout_(layout),
      steps_(steps),
      not_finite_(layout.tensors().size()),
      beyond_limit_(layout.tensors().size()) {}

void StepTally::add(std::size_t tensor, std::uint64_t not_finite, std::uint64_t beyond_limit) {
  not_finite_[tensor].fetch_add(not_finite, std::memory_order_relaxed);
  beyond_limit_[tensor].fetch_add(beyond_limit, std::memory_order_relaxed);
}

void StepTally::add_rotated(std::uint64_t beyond_limit) {
  rotated_beyond_.fetch_add(beyond_limit, std::memory_order_relaxed);
}

void StepTally::require_finite() const {
  for (const TensorSpan& span : layout_.group(kFloatGroup))
    if (const std::uint64_t bad = not_finite_[span.tensor])
      throw ConfigError("tensor '" + layout_.tensors()[span.tensor].name + "' has " +
                            std::to_string(bad) + " values that are not finite" +
                            (steps_.rotation.block != 0 ? " as f32" : ""),
                        "check the training step; a masked sum cannot carry NaN or infinity");
}

std::uint64_t StepTally::clamped() const {
  require_finite();
  std::uint64_t total = rotated_beyond_;
  if (total != 0 && !steps_.clip)
    throw ConfigError(std::to_string(total) + " values of the rotated update are beyond its limit",
                      "raise the limit, or allow clipping");
  const auto& spans = layout_.group(kFloatGroup);
  for (std::size_t i = 0; i < spans.size(); ++i) {
    const std::uint64_t beyond = beyond_limit_[spans[i].tensor];
    if (beyond != 0 && !steps_.clip)
      throw ConfigError("tensor '" + layout_.tensors()[spans[i].tensor].name + "' has " +
                            std::to_string(beyond) + " values beyond " +
                            (steps_.grid.block() == 0 ? "its limit of " + to_text(steps_.limits[i])
                                                      : std::string("the limits of their blocks")),
                        "raise the limit, or allow clipping");
    total += beyond;
  }
  return total;
}

}  // namespace veilsum
