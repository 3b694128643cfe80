// Mask sums: what sites add to their updates and what the coordinator takes away again.
#pragma once

#include <cstdint>
#include <span>

#include "base/secret.h"
#include "kernels/ring_kernels.h"
#include "masks/mask_keys.h"

namespace veilsum {

// Where a vector lies among the mask elements, and how wide they are.
struct MaskPlace {
  std::uint32_t stream;
  unsigned bits;        // 1 .. 64
  std::uint64_t first;  // element of the vector's first word
};

// Throws ConfigError unless bits is 1 .. word_bits and `count` elements from place.first on
// exist in a stream.
void require_mask_place(const MaskPlace& place, std::size_t count, unsigned word_bits);

// accumulator[i] += sum over keys of +-mask element (place.first + i). Bits above
// place.bits become scratch. The result does not depend on threads or instruction set.
//
// Throws ConfigError if bits or the range is out of bounds, or bits exceeds the word.
void add_masks(std::span<std::uint32_t> accumulator, const MaskKeys& keys, const MaskPlace& place,
               unsigned threads);
void add_masks(std::span<std::uint64_t> accumulator, const MaskKeys& keys, const MaskPlace& place,
               unsigned threads);

// The same of a few tiles only, with the weakest kernels of this build:
// sums[512 * i] takes the first element of tile number tiles[i]. Throws ConfigError also if
// sums.size() is not 512 * tiles.size().
void add_mask_tiles(std::span<std::uint32_t> sums, const MaskKeys& keys, std::uint32_t stream,
                    unsigned bits, std::span<const std::uint64_t> tiles, unsigned threads);
void add_mask_tiles(std::span<std::uint64_t> sums, const MaskKeys& keys, std::uint32_t stream,
                    unsigned bits, std::span<const std::uint64_t> tiles, unsigned threads);

// The same as add_masks() on the calling thread and unchecked, for callers that go range by range.
// `keystream` is working memory that they can use again.
using MaskScratch = WipedBuffer<unsigned char>;  // of kMaskScratchBytes
void add_masks_here(std::span<std::uint32_t> accumulator, const MaskTerms& terms,
                    const MaskPlace& place, MaskScratch& keystream);
void add_masks_here(std::span<std::uint64_t> accumulator, const MaskTerms& terms,
                    const MaskPlace& place, MaskScratch& keystream);

}  // namespace veilsum
