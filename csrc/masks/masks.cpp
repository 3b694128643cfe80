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

template <class Word>
void add_tiles(std::span<Word> sums, const MaskKeys& keys, std::uint32_t stream, unsigned bits,
               std::span<const std::uint64_t> tiles, unsigned threads) {
  if (sums.size() != tiles.size() * kTileElements)
    throw ConfigError(std::to_string(tiles.size()) + " tiles are " +
                      std::to_string(tiles.size() * kTileElements) + " sums, got " +
                      std::to_string(sums.size()));
  for (const std::uint64_t tile : tiles)
    require_mask_place(
        {stream, bits, std::min(tile, kMaxMaskElements / kTileElements) * kTileElements},
        kTileElements, 8 * sizeof(Word));
  for (auto rest = keys.terms(); !rest.empty();) {
    const std::size_t count = std::min(rest.size(), kReadyKeys);
    const WeakestKernels checking;
    const ReadyMasks ready(keys.generator(), rest.first(count));
    parallel_for(tiles.size(), 1, threads, [&](const Range& range) {
      const WeakestKernels here;
      MaskScratch keystream(kMaskScratchBytes);
      add_masks_here(sums.subspan(range.begin * kTileElements, kTileElements), ready.terms(),
                     {stream, bits, tiles[range.begin] * kTileElements}, keystream);
    });
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

void add_mask_tiles(std::span<std::uint32_t> sums, const MaskKeys& keys, std::uint32_t stream,
                    unsigned bits, std::span<const std::uint64_t> tiles, unsigned threads) {
  add_tiles(sums, keys, stream, bits, tiles, threads);
}

void add_mask_tiles(std::span<std::uint64_t> sums, const MaskKeys& keys, std::uint32_t stream,
                    unsigned bits, std::span<const std::uint64_t> tiles, unsigned threads) {
  add_tiles(sums, keys, stream, bits, tiles, threads);
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
