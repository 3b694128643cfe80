// The loops over ring words. Included once per CPU level; everything has internal
// linkage and no inline function of the standard library is called, because a copy
// compiled for AVX-512 could win at link time and run on a CPU without it.
#pragma once

#include "element/philox.h"
#include "element/quantize.h"
#include "kernels/fields.inl"
#include "kernels/lanes.inl"
#include "kernels/ring_kernels.h"

namespace veilsum {
namespace {

// --- keystream ---------------------------------------------------------------

// Writes whole vectors of blocks, so up to VS_LANES - 1 blocks more than asked for.
void write_keystream(const ChaChaKey& key, const ChaChaNonce& nonce, std::uint32_t counter,
                     std::size_t blocks, unsigned char* out) {
  for (std::size_t block = 0; block < blocks; block += VS_LANES) {
    Lanes x[16];
    chacha20_block<LaneRotate>(key, nonce,
                               lane_numbers() + (counter + static_cast<std::uint32_t>(block)), x);
    store_blocks(x, out + block * kBlockBytes);
  }
}

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
void add_run(const MaskTerm& term, const MaskRange& range, const Run& run, unsigned char* scratch,
             Word* sums) {
  const std::size_t tiles = (run.end + kTileElements - 1) / kTileElements;
  write_keystream(load_key(term.key), mask_nonce(range.stream, run.tile),
                  mask_counter(run.tile, range.bits), tiles * range.bits, scratch);
  if (term.subtract)
    add_fields<true>(scratch, run.begin, run.end - run.begin, range.bits, sums);
  else
    add_fields<false>(scratch, run.begin, run.end - run.begin, range.bits, sums);
}

// All keys pass over a run while it is in the cache, so the accumulator is read from
// memory and written back once, however many keys there are.
template <class Word>
void add_masks(const MaskTerm* terms, std::size_t term_count, const MaskRange& range,
               unsigned char* scratch, Word* accumulator) {
  for (std::size_t done = 0; done < range.count;) {
    const Run run = run_at(range.first + done, range.count - done);
    for (std::size_t k = 0; k < term_count; ++k)
      add_run(terms[k], range, run, scratch, accumulator + done);
    done += run.end - run.begin;
  }
}

// --- steps -------------------------------------------------------------------------

constexpr std::size_t kStepBlock = 64;  // values rounded per batch of uniforms

void write_uniforms(const StepRule& rule, std::uint64_t first, std::uint32_t* uniforms) {
  for (std::size_t quad = 0; quad < kStepBlock / 4; ++quad) {
    const PhiloxBlock block = rounding_words(rule.key, first / 4 + quad, rule.group);
    for (std::size_t i = 0; i < 4; ++i) uniforms[4 * quad + i] = uniform24(block.word[i]);
  }
}

// The value inside +-limit, times gain; what is wrong with it goes into `count`.
VS_FN double scaled(double value, const StepRule& rule, StepCount& count) {
  const double magnitude = value < 0 ? -value : value;
  const bool finite = magnitude <= 0x1.fffffffffffffp1023;  // false for NaN too
  count.not_finite += !finite;
  count.beyond_limit += finite && magnitude > rule.limit;
  const double bounded = value > rule.limit    ? rule.limit
                         : value < -rule.limit ? -rule.limit
                                               : value;
  // Converting a NaN to an integer is undefined; its step is discarded anyway.
  return finite ? bounded * rule.gain : 0;
}

template <class Value, class Word>
StepCount write_steps(const Value* values, std::size_t count, std::uint64_t first,
                      const StepRule& rule, Word* words) {
  StepCount counted = {0, 0};
  for (std::size_t begin = 0; begin < count; begin += kStepBlock) {
    const std::size_t end = count - begin < kStepBlock ? count : begin + kStepBlock;
    if (!rule.stochastic) {
      for (std::size_t i = begin; i < end; ++i)
        words[i] = static_cast<Word>(round_nearest(scaled(values[i], rule, counted)));
      continue;
    }
    std::uint32_t uniforms[kStepBlock];
    write_uniforms(rule, first + begin, uniforms);
    for (std::size_t i = begin; i < end; ++i)
      words[i] = static_cast<Word>(
          round_stochastic(scaled(values[i], rule, counted), uniforms[i - begin]));
  }
  return counted;
}

constexpr RingKernels kRingKernels = {
    .add_masks32 = add_masks<std::uint32_t>,
    .add_masks64 = add_masks<std::uint64_t>,
    .add_packed32 = add_packed<std::uint32_t>,
    .add_packed64 = add_packed<std::uint64_t>,
    .pack32 = pack<std::uint32_t>,
    .pack64 = pack<std::uint64_t>,
    .steps32_f32 = write_steps<WireFloat, std::uint32_t>,
    .steps64_f32 = write_steps<WireFloat, std::uint64_t>,
    .steps32_f64 = write_steps<WireDouble, std::uint32_t>,
    .steps64_f64 = write_steps<WireDouble, std::uint64_t>,
};

}  // namespace
}  // namespace veilsum
