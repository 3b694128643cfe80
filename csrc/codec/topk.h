// The sections of a topk chunk: how many coordinates each tile keeps, which ones, and their
// values (docs/format.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "codec/chunk.h"
#include "codec/codecs.h"
#include "kernels/codec_kernels.h"

namespace veilsum {

inline constexpr std::size_t kTopKTile = 4096;  // an index within one has 12 bits

// Coordinates that a chunk keeps: one of `sparsity`, rounded up.
inline std::size_t topk_kept(std::uint64_t count, unsigned sparsity) {
  return (count + sparsity - 1) / sparsity;
}

// Bytes of so many indices.
inline std::size_t topk_index_bytes(std::size_t kept) { return kept / 2 * 3 + kept % 2 * 2; }

// Index number `entry`, of the two that share three bytes.
inline unsigned topk_index(const std::byte* indices, std::size_t entry) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(indices) + entry / 2 * 3;
  return entry % 2 == 0 ? bytes[0] | (bytes[1] & 15u) << 8
                        : bytes[1] >> 4 | unsigned{bytes[2]} << 4;
}

// Where things lie in a chunk whose sections have their sizes.
struct TopKSections {
  const WireHalf* tile_counts;
  std::size_t kept;
  const std::byte* indices;
  const std::byte* values;
  ScaleFormat format;  // of a value

  float value(std::size_t entry) const;
};

// What one tile keeps: entries first .. first + count - 1 of its chunk.
struct TopKEntries {
  std::size_t first;
  std::size_t count;
};

// Of tile number `tile` of the chunk. Counts were checked before, but decide here which memory is
// touched: bounding them again is what keeps bytes that a caller changed meanwhile from becoming
// an access out of bounds.
TopKEntries topk_entries(const TopKSections& sections, std::size_t tile);

TopKSections topk_sections(std::uint16_t codec, std::uint64_t count,
                           std::span<const std::byte> tile_counts,
                           std::span<const std::byte> codes);
inline TopKSections topk_sections(const ChunkView& chunk) {
  return topk_sections(chunk.header.codec, chunk.header.count, chunk.scales, chunk.codes);
}

}  // namespace veilsum
