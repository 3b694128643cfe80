// Mask sums: what sites add to their updates and what the coordinator takes away again.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/secret.h"
#include "kernels/ring_kernels.h"

namespace veilsum {

inline constexpr std::size_t kMaskKeyBytes = 32;

// Where a vector lies among the mask elements, and how wide they are.
struct MaskPlace {
  std::uint32_t stream;
  unsigned bits;        // 1 .. 64
  std::uint64_t first;  // element of the vector's first word
};

// Pairs keys with signs; the keys must outlive the result. Throws ConfigError if there is
// not one sign per key, a key is not 32 bytes or a sign is not +1 or -1.
std::vector<MaskTerm> mask_terms(std::span<const Secret* const> keys, std::span<const int> signs);

// Throws ConfigError unless bits is 1 .. word_bits and `count` elements from place.first on
// exist in a stream.
void require_mask_place(const MaskPlace& place, std::size_t count, unsigned word_bits);

// accumulator[i] += sum over terms of +-mask element (place.first + i). Bits above
// place.bits become scratch. The result does not depend on threads or instruction set.
//
// Throws ConfigError if bits or the range is out of bounds, or bits exceeds the word.
void add_masks(std::span<std::uint32_t> accumulator, std::span<const MaskTerm> terms,
               const MaskPlace& place, unsigned threads);
void add_masks(std::span<std::uint64_t> accumulator, std::span<const MaskTerm> terms,
               const MaskPlace& place, unsigned threads);

// The same on the calling thread and unchecked, for callers that go range by range.
// `keystream` is working memory that they can use again.
using MaskScratch = WipedBuffer<unsigned char>;  // of kMaskScratchBytes
void add_masks_here(std::span<std::uint32_t> accumulator, std::span<const MaskTerm> terms,
                    const MaskPlace& place, MaskScratch& keystream);
void add_masks_here(std::span<std::uint64_t> accumulator, std::span<const MaskTerm> terms,
                    const MaskPlace& place, MaskScratch& keystream);

}  // namespace veilsum
