#include "masks/step_writer.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>

#include "base/error.h"
#include "base/secret.h"
#include "element/bits.h"
#include "element/quantize.h"
#include "element/rotation.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

StepCount write_steps(bool wide, const void* values, std::uint64_t first, const StepRule& rule,
                      std::span<std::uint32_t> words) {
  const RingKernels& ring = kernels().ring;
  return (wide ? ring.steps32_f64 : ring.steps32_f32)(values, words.size(), first, rule,
                                                      words.data());
}

StepCount write_steps(bool wide, const void* values, std::uint64_t first, const StepRule& rule,
                      std::span<std::uint64_t> words) {
  const RingKernels& ring = kernels().ring;
  return (wide ? ring.steps64_f64 : ring.steps64_f32)(values, words.size(), first, rule,
                                                      words.data());
}

template <class Word>
StepCount write_half_steps(bool brain, const WireHalf* values, std::uint64_t first,
                           const StepRule& rule, std::span<Word> words) {
  const CodecKernels& codec = kernels().codec;
  WipedBuffer<float> widened(words.size());
  (brain ? codec.widen_bf16 : codec.widen_f16)(values, words.size(), widened.data());
  return write_steps(false, widened.data(), first, rule, words);
}

// Steps of `words.size()` values of a tensor; `values` points at the first of them.
template <class Word>
StepCount write_tensor_steps(DType dtype, const std::byte* values, std::uint64_t first,
                             const StepRule& rule, std::span<Word> words) {
  if (dtype == DType::f32 || dtype == DType::f64)
    return write_steps(dtype == DType::f64, values, first, rule, words);
  return write_half_steps(dtype == DType::bf16, reinterpret_cast<const WireHalf*>(values), first,
                          rule, words);
}

// The largest step is that of the limit itself, rounded up as far as rounding goes:
// multiplication and both roundings are monotone.
void require_steps_fit(double limit, double gain, unsigned bits, const std::string& what) {
  const double largest = limit * gain;
  if (!(limit >= 0 && std::isfinite(limit) && gain > 0 && std::isfinite(gain)))
    throw ConfigError(what + " needs a finite gain above 0 and a finite limit, " + "got " +
                      to_text(gain) + " and " + to_text(limit));
  if (largest < 0x1p63 &&
      round_stochastic(largest, 0xFFFFFF) <= static_cast<std::int64_t>(low_bits(bits) >> 1))
    return;
  throw ConfigError(what + " can reach " + to_text(largest) +
                        " steps, beyond the signed range of " + std::to_string(bits) + " bits",
                    "use a wider ring or fewer steps per unit");
}

// What an entry of the table stands for, in words.
std::string entry_name(const Layout& layout, const StepPlan& steps, std::size_t entry) {
  if (steps.grid.block() != 0)
    return "block " + std::to_string(entry) + " of " + std::to_string(steps.grid.block()) +
           " coordinates";
  const auto& span = layout.group(kFloatGroup)[entry];
  return "tensor '" + layout.tensors()[span.tensor].name + "'";
}

StepRule rule_of(const StepPlan& steps, double gain, double limit) {
  return {gain, limit, steps.rounding.has_value(), steps.rounding.value_or(PhiloxKey{}),
          kFloatGroup};
}

// Scales and rotates the finite values of a tile in place. Returns how many were beyond.
template <class Word>
std::uint64_t write_rotated_steps(const StepPlan& steps, std::uint64_t first,
                                  std::span<float> values, std::span<Word> words) {
  const double bound = rotation_bound(steps);
  std::uint64_t beyond = 0;
  steps.grid.for_each_stretch(
      first, words.size(), [&](std::size_t offset, std::size_t count, std::size_t entry) {
        beyond +=
            kernels().rotation.scale_f32(values.data() + offset, count, steps.gains[entry], bound);
      });
  rotate(steps.rotation, first, values);
  return beyond +
         write_steps(false, values.data(), first, rule_of(steps, 1, steps.rotated_limit), words)
             .beyond_limit;
}

bool is_finite_number(float value) { return std::isfinite(value); }

}  // namespace

double rotation_bound(const StepPlan& steps) {
  return steps.rotated_limit / double{rotation_scale(steps.rotation.block)};
}

void require_step_plan(const Layout& layout, const StepPlan& steps, unsigned bits) {
  const bool rotated = steps.rotation.block != 0;
  require_rotation_block(steps.rotation.block);
  if (steps.gains.size() != steps.grid.entries() ||
      steps.limits.size() != (rotated ? 0 : steps.grid.entries()))
    throw ConfigError("one gain and one limit per " +
                      std::string(steps.grid.block() == 0 ? "floating-point tensor" : "block") +
                      " are needed: " + std::to_string(steps.grid.entries()) + ", got " +
                      std::to_string(steps.gains.size()) + " and " +
                      std::to_string(steps.limits.size()));
  for (std::size_t i = 0; i < steps.gains.size(); ++i)
    require_steps_fit(rotated ? steps.rotated_limit / steps.gains[i] : steps.limits[i],
                      steps.gains[i], bits, entry_name(layout, steps, i));
  if (rotated) require_steps_fit(steps.rotated_limit, 1, bits, "the rotated update");
}

StepWriter::StepWriter(const Layout& layout, TensorData tensors, const StepPlan& steps)
    : layout_(layout), tensors_(tensors), steps_(steps), tally_(layout, steps) {}

void StepWriter::fill(std::uint64_t first, std::span<std::uint32_t> words) {
  steps_.rotation.block != 0 ? fill_rotated(first, words) : fill_parts(first, words);
}

void StepWriter::fill(std::uint64_t first, std::span<std::uint64_t> words) {
  steps_.rotation.block != 0 ? fill_rotated(first, words) : fill_parts(first, words);
}

// --- straight --------------------------------------------------------------------

template <class Word>
void StepWriter::fill_parts(std::uint64_t first, std::span<Word> words) {
  for_each_part(layout_, kFloatGroup, first, words.size(), [&](const TensorPart& part) {
    fill_part(part, first + part.offset, words.subspan(part.offset, part.count));
  });
  for_each_gap(layout_, kFloatGroup, first, words.size(),
               [&](std::size_t offset, std::size_t count) {
                 std::ranges::fill(words.subspan(offset, count), Word{0});
               });
}

template <class Word>
void StepWriter::fill_part(const TensorPart& part, std::uint64_t first, std::span<Word> words) {
  const DType dtype = layout_.tensors()[part.tensor].dtype;
  const std::byte* values = tensors_[part.tensor] + part.element * dtype_size(dtype);
  steps_.grid.for_each_stretch(
      first, words.size(), [&](std::size_t offset, std::size_t count, std::size_t entry) {
        const StepCount met =
            write_tensor_steps(dtype, values + offset * dtype_size(dtype), first + offset,
                               rule_of(steps_, steps_.gains[entry], steps_.limits[entry]),
                               words.subspan(offset, count));
        tally_.add(part.tensor, met.not_finite, met.beyond_limit);
      });
}

// --- rotated ---------------------------------------------------------------------

bool StepWriter::all_finite(const TensorPart& part, std::span<const float> values) {
  if (std::bit_cast<float>(kernels().codec.max_abs32(values.data(), values.size())) <=
      0x1.fffffep127f)
    return true;
  const auto finite = std::count_if(values.begin(), values.end(), is_finite_number);
  tally_.add(part.tensor, values.size() - static_cast<std::size_t>(finite), 0);
  return false;
}

// A tile at a time, in the clear only in memory that is wiped.
template <class Word>
void StepWriter::fill_rotated(std::uint64_t first, std::span<Word> words) {
  WipedBuffer<float> room(words.size());
  const std::span<float> values = room.span();
  gather(layout_, tensors_, first, Narrowing::nearest, values);
  bool finite = true;
  for_each_part(layout_, kFloatGroup, first, words.size(), [&](const TensorPart& part) {
    finite &= all_finite(part, values.subspan(part.offset, part.count));
  });
  if (!finite) {
    std::ranges::fill(words, Word{0});
    return;  // the tally will throw
  }
  tally_.add_rotated(write_rotated_steps(steps_, first, values, words));
}

// --- values that were read before --------------------------------------------------

void write_value_steps(const StepPlan& steps, std::uint64_t first, std::span<const double> values,
                       std::span<std::uint64_t> words) {
  if (steps.rotation.block != 0) {
    WipedBuffer<float> room(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) room.data()[i] = static_cast<float>(values[i]);
    write_rotated_steps(steps, first, room.span(), words);
    return;
  }
  steps.grid.for_each_stretch(first, words.size(),
                              [&](std::size_t offset, std::size_t count, std::size_t entry) {
                                write_steps(true, values.data() + offset, first + offset,
                                            rule_of(steps, steps.gains[entry], steps.limits[entry]),
                                            words.subspan(offset, count));
                              });
}

}  // namespace veilsum
