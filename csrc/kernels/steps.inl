// Values to steps, one CPU level's version. Included by ring_loops.inl.
#pragma once

#include "element/quantize.h"
#include "kernels/doubles.inl"
#include "kernels/lanes.inl"
#include "kernels/ring_kernels.h"
#include "kernels/uniforms.inl"
#include "kernels/wipe.inl"

namespace veilsum {
namespace {

// --- any values, any steps -------------------------------------------------------------
// In blocks of a fixed size and in plain loops, each of which the compiler turns into
// vectors; one loop with everything in it would branch on every value.

template <class Word>
struct StepOf;
template <>
struct StepOf<std::uint32_t> {
  typedef std::int32_t Type;
};
template <>
struct StepOf<std::uint64_t> {
  typedef std::int64_t Type;
};

// Bit patterns of magnitudes order like the magnitudes; NaN comes out on top.
VS_FN float largest_magnitude(const float* values) {
  std::uint32_t bits[kUniformBlock];
  __builtin_memcpy(bits, values, sizeof bits);
  std::uint32_t largest = 0;
  for (std::size_t i = 0; i < kUniformBlock; ++i) {
    const std::uint32_t magnitude = bits[i] & 0x7FFFFFFFu;
    largest = magnitude > largest ? magnitude : largest;
  }
  float result;
  __builtin_memcpy(&result, &largest, sizeof result);
  return result;
}

VS_FN double largest_magnitude(const double* values) {
  std::uint64_t bits[kUniformBlock];
  __builtin_memcpy(bits, values, sizeof bits);
  std::uint64_t largest = 0;
  for (std::size_t i = 0; i < kUniformBlock; ++i) {
    const std::uint64_t magnitude = bits[i] & 0x7FFFFFFFFFFFFFFFu;
    largest = magnitude > largest ? magnitude : largest;
  }
  double result;
  __builtin_memcpy(&result, &largest, sizeof result);
  return result;
}

template <class Value>
StepCount clamp_and_scale_block(const Value* values, double limit, double gain, double* scaled) {
  StepCount count = {0, 0};
  for (std::size_t i = 0; i < kUniformBlock; ++i) {
    count.not_finite += is_finite_value(values[i]) ? 0 : 1;
    count.beyond_limit += is_beyond(values[i], limit) ? 1 : 0;
    scaled[i] = clamped_steps(values[i], limit, gain);
  }
  return count;
}

// Values inside +-limit, times gain.
template <class Value>
VS_FN StepCount scale_block(const Value* values, const StepRule& rule, double* scaled) {
  if (!(largest_magnitude(values) <= rule.limit))
    return clamp_and_scale_block(values, rule.limit, rule.gain, scaled);
  const double gain = rule.gain;
  for (std::size_t i = 0; i < kUniformBlock; ++i) scaled[i] = values[i] * gain;
  return {0, 0};
}

template <class Value, class Word>
struct StepBlock {
  Value values[kUniformBlock];
  double scaled[kUniformBlock];
  std::uint32_t uniforms[kUniformBlock];
  Word words[kUniformBlock];
};

template <class Value, class Word>
VS_FN void round_block(std::uint64_t first, const StepRule& rule, StepBlock<Value, Word>& block) {
  typedef typename StepOf<Word>::Type Step;
  if (!rule.stochastic) {
    for (std::size_t i = 0; i < kUniformBlock; ++i)
      block.words[i] = static_cast<Word>(round_nearest<Step>(block.scaled[i]));
    return;
  }
  write_uniforms(rule.key, rule.group, first, block.uniforms);
  for (std::size_t i = 0; i < kUniformBlock; ++i)
    block.words[i] = static_cast<Word>(round_stochastic<Step>(block.scaled[i], block.uniforms[i]));
}

// Values may lie at any address; they are copied to an aligned block, because GCC loads
// nothing else into vectors. The last block is filled up with zeros.
template <class Value, class Word>
StepCount write_steps(const void* values, std::size_t count, std::uint64_t first,
                      const StepRule& rule, Word* words) {
  const auto* bytes = static_cast<const unsigned char*>(values);
  StepCount total = {0, 0};
  StepBlock<Value, Word> block;
  for (std::size_t begin = 0; begin < count; begin += kUniformBlock) {
    const std::size_t length = count - begin < kUniformBlock ? count - begin : kUniformBlock;
    if (length < kUniformBlock) __builtin_memset(block.values, 0, sizeof block.values);
    __builtin_memcpy(block.values, bytes + begin * sizeof(Value), length * sizeof(Value));
    const StepCount counted = scale_block(block.values, rule, block.scaled);
    total = {total.not_finite + counted.not_finite, total.beyond_limit + counted.beyond_limit};
    round_block(first + begin, rule, block);
    __builtin_memcpy(words + begin, block.words, length * sizeof(Word));
  }
  wipe_local(block);
  return total;
}

// --- floats to steps of 32 bits ------------------------------------------------------
// What nearly every model needs, in vectors written out: the loops above go through memory
// between one operation and the next, which takes longer than the operations.

VS_FN Doubles scaled_values(const unsigned char* values, double gain) {
  HalfFloats loaded;
  __builtin_memcpy(&loaded, values, sizeof loaded);
  return to_doubles(loaded) * gain;
}

// Batches that are worked on side by side, as many as registers hold, and the values they take.
constexpr std::size_t kStepBatches = VS_LANES == 16 ? 4 : 2;
constexpr std::size_t kStepGroup = kStepBatches * kUniformBatch;

// The group of values that begins at coordinate `first`.
template <bool kStochastic>
VS_FN void write_step_group(const unsigned char* values, std::uint64_t first, const StepRule& rule,
                            const UniformKeys& keys, std::uint32_t* words) {
  constexpr std::size_t kParts = kStepGroup / kWideLanes;
  HalfSteps uniforms[kParts];
  if constexpr (kStochastic) {
    UniformBatch batches[kStepBatches];
    make_uniform_batches<kStepBatches>(keys, rule.group, first / 4, batches);
    __builtin_memcpy(uniforms, batches, sizeof uniforms);
  }
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kParts; ++i) {
    const Doubles y = scaled_values(values + i * sizeof(HalfFloats), rule.gain);
    HalfSteps steps;
    if constexpr (kStochastic)
      steps = floor_to_steps(add_uniforms(y, uniforms[i]));
    else
      steps = round_to_steps(y);
    __builtin_memcpy(words + i * kWideLanes, &steps, sizeof steps);
  }
}

// How far ahead values are asked for: what the next call will want, if it goes on where this one
// ends. Without, memory idles while uniforms are made.
constexpr std::size_t kFetchAhead = 16384;

// Whole groups of values within the limit.
template <bool kStochastic>
void write_step_groups(const unsigned char* values, std::size_t count, std::uint64_t first,
                       const StepRule& rule, std::uint32_t* words) {
  UniformKeys keys = uniform_keys(rule.key);
  for (std::size_t done = 0; done < count; done += kStepGroup) {
    const unsigned char* const group = values + done * sizeof(float);
    for (std::size_t line = 0; line < kStepGroup * sizeof(float); line += 64)
      __builtin_prefetch(group + kFetchAhead + line);
    write_step_group<kStochastic>(group, first + done, rule, keys, words + done);
  }
  wipe_local(keys);
}

// Over whole vectors, at any address.
VS_FN float largest_magnitude_of(const unsigned char* values, std::size_t count) {
  SignedLanes largest{};
  for (std::size_t done = 0; done < count; done += VS_LANES) {
    SignedLanes bits;
    __builtin_memcpy(&bits, values + done * sizeof(float), sizeof bits);
    bits &= 0x7FFFFFFF;
    largest = bits > largest ? bits : largest;
  }
  std::int32_t result = 0;
  for (std::size_t lane = 0; lane < VS_LANES; ++lane)
    result = largest[lane] > result ? largest[lane] : result;
  float value;
  __builtin_memcpy(&value, &result, sizeof value);
  return value;
}

StepCount write_narrow_steps(const void* values, std::size_t count, std::uint64_t first,
                             const StepRule& rule, std::uint32_t* words) {
  const auto* bytes = static_cast<const unsigned char*>(values);
  std::size_t bulk = count / kStepGroup * kStepGroup;
  if (!(largest_magnitude_of(bytes, bulk) <= rule.limit)) bulk = 0;  // a NaN too
  if (rule.stochastic)
    write_step_groups<true>(bytes, bulk, first, rule, words);
  else
    write_step_groups<false>(bytes, bulk, first, rule, words);
  return write_steps<float>(bytes + bulk * sizeof(float), count - bulk, first + bulk, rule,
                            words + bulk);
}

}  // namespace
}  // namespace veilsum
