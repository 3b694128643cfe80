// The loops over ring words. Included once per CPU level; everything has internal
// linkage and no inline function of the standard library is called, because a copy
// compiled for AVX-512 could win at link time and run on a CPU without it.
#pragma once

#include "element/quantize.h"
#include "kernels/fields.inl"
#include "kernels/keystream.inl"
#include "kernels/lanes.inl"
#include "kernels/ring_kernels.h"
#include "kernels/uniforms.inl"

namespace veilsum {
namespace {

// --- masks -----------------------------------------------------------------------

// Up to kRunTiles tiles of one nonce segment, and the elements wanted of them.
struct Run {
  std::uint64_t tile;
  std::size_t begin;  // elements, counted from the start of `tile`
  std::size_t end;
};

// The run that holds `element` and as many of the next `count` elements as possible. Runs
// end on multiples of kRunTiles, so they never cross into another segment.
VS_FN Run run_at(std::uint64_t element, std::size_t count) {
  const std::uint64_t tile = element / kTileElements;
  const std::size_t begin = element % kTileElements;
  const std::size_t capacity = (kRunTiles - tile % kRunTiles) * kTileElements;
  return {tile, begin, count < capacity - begin ? begin + count : capacity};
}

// sums[0] takes element run.begin.
template <class Word>
void add_run(const MaskTerm& term, WriteKeystream keystream, const MaskRange& range, const Run& run,
             unsigned char* scratch, Word* sums) {
  const std::size_t tiles = (run.end + kTileElements - 1) / kTileElements;
  keystream(
      term.key,
      {mask_nonce(range.stream, run.tile), mask_counter(run.tile, range.bits), tiles * range.bits},
      scratch);
  if (term.subtract)
    add_fields<true>(scratch, run.begin, run.end - run.begin, range.bits, sums);
  else
    add_fields<false>(scratch, run.begin, run.end - run.begin, range.bits, sums);
}

// All keys pass over a run while it is in the cache, so the accumulator is read from
// memory and written back once, however many keys there are.
template <class Word>
void add_masks(const MaskTerms& terms, const MaskRange& range, unsigned char* scratch,
               Word* accumulator) {
  for (std::size_t done = 0; done < range.count;) {
    const Run run = run_at(range.first + done, range.count - done);
    for (std::size_t k = 0; k < terms.count; ++k)
      add_run(terms.term[k], terms.keystream, range, run, scratch, accumulator + done);
    done += run.end - run.begin;
  }
}

// --- steps -------------------------------------------------------------------------
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
    const double value = values[i];
    const double magnitude = __builtin_fabs(value);
    const bool finite = magnitude <= 0x1.fffffffffffffp1023;  // false for NaN too
    count.not_finite += finite ? 0 : 1;
    count.beyond_limit += magnitude > limit ? 1 : 0;
    const double below = value > limit ? limit : value;
    const double bounded = below < -limit ? -limit : below;
    // Converting a NaN to an integer is undefined; its step is discarded anyway.
    scaled[i] = finite ? bounded * gain : 0;
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

constexpr RingKernels kRingKernels = {
    .chacha20 = write_chacha20,
    .aes256 = write_aes256,
    .add_masks32 = add_masks<std::uint32_t>,
    .add_masks64 = add_masks<std::uint64_t>,
    .add_packed32 = add_packed<std::uint32_t>,
    .add_packed64 = add_packed<std::uint64_t>,
    .pack32 = pack<std::uint32_t>,
    .pack64 = pack<std::uint64_t>,
    .steps32_f32 = write_steps<float, std::uint32_t>,
    .steps64_f32 = write_steps<float, std::uint64_t>,
    .steps32_f64 = write_steps<double, std::uint32_t>,
    .steps64_f64 = write_steps<double, std::uint64_t>,
};

}  // namespace
}  // namespace veilsum
