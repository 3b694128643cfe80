// Values of group 1 to steps, straight or by way of a rotation.
#pragma once

#include <cstdint>
#include <span>

#include "masks/ring_chunks.h"
#include "masks/step_tally.h"

namespace veilsum {

// Throws ConfigError unless every step that the plan allows fits `bits` bits.
void require_step_plan(const Layout& layout, const StepPlan& steps, unsigned bits);

// Encodes the tensors of group 1 and keeps count of what was wrong with their values. Refers to
// its arguments. fill() may be called from several threads.
class StepWriter {
 public:
  StepWriter(const Layout& layout, TensorData tensors, const StepPlan& steps);

  // Fills the words of the coordinates from `first` on. Gaps are zero, unless there is a
  // rotation: then `first` is a multiple of 4096, and the words are a whole tile or the last one.
  void fill(std::uint64_t first, std::span<std::uint32_t> words);
  void fill(std::uint64_t first, std::span<std::uint64_t> words);

  // What fill() has met.
  const StepTally& tally() const { return tally_; }

 private:
  template <class Word>
  void fill_parts(std::uint64_t first, std::span<Word> words);
  template <class Word>
  void fill_part(const TensorPart& part, std::uint64_t first, std::span<Word> words);
  template <class Word>
  void fill_rotated(std::uint64_t first, std::span<Word> words);
  bool all_finite(const TensorPart& part, std::span<const float> values);

  const Layout& layout_;
  const TensorData tensors_;
  const StepPlan& steps_;
  StepTally tally_;
};

// The largest |value| that reaches the rotation.
double rotation_bound(const StepPlan& steps);

// Words of the coordinates from `first` on whose values are at hand, finite, and 0 in gaps: nothing
// is counted. With a rotation `first` is a multiple of 4096, and they are a whole tile or the last
// one.
void write_value_steps(const StepPlan& steps, std::uint64_t first, std::span<const double> values,
                       std::span<std::uint64_t> words);

}  // namespace veilsum
