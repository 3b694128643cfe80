// What was wrong with values on their way to steps.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "codec/layout.h"
#include "masks/ring_chunks.h"

namespace veilsum {

// For messages: six digits.
std::string to_text(double value);

// Counts, whoever encodes. Refers to its arguments. May be added to from several threads.
class StepTally {
 public:
  StepTally(const Layout& layout, const StepPlan& steps);

  void add(std::size_t tensor, std::uint64_t not_finite, std::uint64_t beyond_limit);
  // Values of the rotated update that are beyond its limit.
  void add_rotated(std::uint64_t beyond_limit);

  // Throws for what was counted, by tensor in layout order; else the clamped values.
  std::uint64_t clamped() const;

 private:
  void require_finite() const;

  const Layout& layout_;
  const StepPlan& steps_;
  std::vector<std::atomic<std::uint64_t>> not_finite_;  // per tensor of the layout
  std::vector<std::atomic<std::uint64_t>> beyond_limit_;
  std::atomic<std::uint64_t> rotated_beyond_{0};
};

}  // namespace veilsum
