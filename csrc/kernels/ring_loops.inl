// The loops over ring words. Included once per CPU level; everything has internal
// linkage and no inline function of the standard library is called, because a copy
// compiled for AVX-512 could win at link time and run on a CPU without it.
#pragma once

#include "kernels/fields.inl"
#include "kernels/keystream.inl"
#include "kernels/lanes.inl"
#include "kernels/ring_kernels.h"
#include "kernels/steps.inl"
#include "kernels/unsteps.inl"

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

constexpr RingKernels kRingKernels = {
    .chacha20 = write_chacha20,
    .aes256 = write_aes256,
    .add_masks32 = add_masks<std::uint32_t>,
    .add_masks64 = add_masks<std::uint64_t>,
    .add_packed32 = add_packed<std::uint32_t>,
    .add_packed64 = add_packed<std::uint64_t>,
    .pack32 = pack<std::uint32_t>,
    .pack64 = pack<std::uint64_t>,
    .unpack_steps = unpack_steps,
    .divide_steps = divide_steps,
    .steps32_f32 = write_narrow_steps,
    .steps64_f32 = write_steps<float, std::uint64_t>,
    .steps32_f64 = write_steps<double, std::uint32_t>,
    .steps64_f64 = write_steps<double, std::uint64_t>,
};

}  // namespace
}  // namespace veilsum
