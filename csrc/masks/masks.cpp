#include "masks/masks.h"

#include <algorithm>
#include <string>

#include "base/error.h"
#include "base/parallel.h"
#include "kernels/dispatch.h"
#include "masks/ring_words.h"

namespace veilsum {
namespace {

// Elements one thread takes at a time: whole runs, enough of them to pay for the hand-over.
constexpr std::size_t kRunElements = kRunTiles * kTileElements;
constexpr std::size_t kRangeElements = 16 * kRunElements;

MaskRange kernel_range(const MaskPlace& place, std::size_t count) {
  return {place.stream, place.bits, place.first, count};
}

// Keys that are ready at a time: it bounds the locked memory that their round keys take, and
// the accumulator is then read and written once per so many.
constexpr std::size_t kReadyKeys = 1024;

template <class Word>
void add_terms(std::span<Word> accumulator, const MaskTerms& terms, const MaskPlace& place,
               unsigned threads) {
  // Ranges are cut where the stream's runs end, so that no run is computed twice.
  const std::size_t lead = place.first % kRunElements;
  parallel_for(lead + accumulator.size(), kRangeElements, threads, [&](const Range& range) {
    const std::size_t begin = std::max(range.begin, lead) - lead;
    const std::size_t end = std::max(range.end, lead) - lead;
    MaskScratch keystream(kMaskScratchBytes);
    add_masks_here(accumulator.subspan(begin, end - begin), terms,
                   {place.stream, place.bits, place.first + begin}, keystream);
  });
}

template <class Word>
void add(std::span<Word> accumulator, const MaskKeys& keys, const MaskPlace& place,
         unsigned threads) {
  require_mask_place(place, accumulator.size(), 8 * sizeof(Word));
  for (auto rest = keys.terms(); !rest.empty();) {
    const std::size_t count = std::min(rest.size(), kReadyKeys);
    const ReadyMasks ready(keys.generator(), rest.first(count));
    add_terms(accumulator, ready.terms(), place, threads);
    rest = rest.subspan(count);
  }
}

}  // namespace

void require_mask_place(const MaskPlace& place, std::size_t count, unsigned word_bits) {
  require_ring_bits(place.bits, word_bits);
  if (place.first > kMaxMaskElements || count > kMaxMaskElements - place.first)
    throw ConfigError("elements " + std::to_string(place.first) + " to " +
                      std::to_string(place.first + count) + " leave the mask stream, which has " +
                      std::to_string(kMaxMaskElements));
}

void add_masks(std::span<std::uint32_t> accumulator, const MaskKeys& keys, const MaskPlace& place,
               unsigned threads) {
  add(accumulator, keys, place, threads);
}

void add_masks(std::span<std::uint64_t> accumulator, const MaskKeys& keys, const MaskPlace& place,
               unsigned threads) {
  add(accumulator, keys, place, threads);
}

void add_masks_here(std::span<std::uint32_t> accumulator, const MaskTerms& terms,
                    const MaskPlace& place, MaskScratch& keystream) {
  kernels().ring.add_masks32(terms, kernel_range(place, accumulator.size()), keystream.data(),
                             accumulator.data());
}

void add_masks_here(std::span<std::uint64_t> accumulator, const MaskTerms& terms,
                    const MaskPlace& place, MaskScratch& keystream) {
  kernels().ring.add_masks64(terms, kernel_range(place, accumulator.size()), keystream.data(),
                             accumulator.data());
}

}  // namespace veilsum
