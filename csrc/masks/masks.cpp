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

template <class Word>
void add(std::span<Word> accumulator, std::span<const MaskTerm> terms, const MaskPlace& place,
         unsigned threads) {
  require_mask_place(place, accumulator.size(), 8 * sizeof(Word));
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

}  // namespace

std::vector<MaskTerm> mask_terms(std::span<const Secret* const> keys, std::span<const int> signs) {
  if (keys.size() != signs.size())
    throw ConfigError("one sign per key is needed: " + std::to_string(keys.size()) + " keys, " +
                      std::to_string(signs.size()) + " signs");
  std::vector<MaskTerm> terms;
  terms.reserve(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const auto key = keys[i]->bytes();
    if (key.size() != kMaskKeyBytes)
      throw ConfigError("key " + std::to_string(i) + " must have " + std::to_string(kMaskKeyBytes) +
                        " bytes, got " + std::to_string(key.size()));
    if (signs[i] != 1 && signs[i] != -1)
      throw ConfigError("sign " + std::to_string(i) + " must be +1 or -1, got " +
                        std::to_string(signs[i]));
    terms.push_back({reinterpret_cast<const unsigned char*>(key.data()), signs[i] < 0});
  }
  return terms;
}

void require_mask_place(const MaskPlace& place, std::size_t count, unsigned word_bits) {
  require_ring_bits(place.bits, word_bits);
  if (place.first > kMaxMaskElements || count > kMaxMaskElements - place.first)
    throw ConfigError("elements " + std::to_string(place.first) + " to " +
                      std::to_string(place.first + count) + " leave the mask stream, which has " +
                      std::to_string(kMaxMaskElements));
}

void add_masks(std::span<std::uint32_t> accumulator, std::span<const MaskTerm> terms,
               const MaskPlace& place, unsigned threads) {
  add(accumulator, terms, place, threads);
}

void add_masks(std::span<std::uint64_t> accumulator, std::span<const MaskTerm> terms,
               const MaskPlace& place, unsigned threads) {
  add(accumulator, terms, place, threads);
}

void add_masks_here(std::span<std::uint32_t> accumulator, std::span<const MaskTerm> terms,
                    const MaskPlace& place, MaskScratch& keystream) {
  kernels().ring.add_masks32(terms.data(), terms.size(), kernel_range(place, accumulator.size()),
                             keystream.data(), accumulator.data());
}

void add_masks_here(std::span<std::uint64_t> accumulator, std::span<const MaskTerm> terms,
                    const MaskPlace& place, MaskScratch& keystream) {
  kernels().ring.add_masks64(terms.data(), terms.size(), kernel_range(place, accumulator.size()),
                             keystream.data(), accumulator.data());
}

}  // namespace veilsum
