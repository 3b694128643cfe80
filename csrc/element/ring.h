// Where mask elements lie in key streams (docs/protocol.md, "Masks").
//
// 512 elements of b bits are 512*b bits, which is b whole blocks of 64 bytes for every b
// from 1 to 64. So a tile of 512 elements starts on a block, whatever the width, and
// any range of a vector can be masked without the rest. A block is one of ChaCha20, or four
// of AES.
#pragma once

#include <cstddef>
#include <cstdint>

#include "element/annotate.h"
#include "element/chacha20.h"

namespace veilsum {

inline constexpr std::uint64_t kTileElements = 512;
inline constexpr std::size_t kBlockBytes = 64;
inline constexpr unsigned kMaxRingBits = 64;
// A nonce covers 2^20 tiles; the number of a block then stays below 2^20 * 64 = 2^26, that of
// an AES block below 2^28, and no counter can wrap.
inline constexpr unsigned kSegmentTileBits = 20;
inline constexpr std::uint64_t kSegmentTiles = std::uint64_t{1} << kSegmentTileBits;
// The segment number is 32 bits of the nonce.
inline constexpr std::uint64_t kMaxMaskElements = kTileElements << (kSegmentTileBits + 32);

// The same 12 bytes for every generator.
VS_FN ChaChaNonce mask_nonce(std::uint32_t stream, std::uint64_t tile) {
  // The last word is "VSM1": a key that is used elsewhere too cannot meet this nonce.
  return {{stream, static_cast<std::uint32_t>(tile >> kSegmentTileBits), 0x314D5356u}};
}

// Number of the tile's first block under its nonce.
VS_FN std::uint32_t mask_counter(std::uint64_t tile, unsigned bits) {
  return static_cast<std::uint32_t>(tile & (kSegmentTiles - 1)) * bits;
}

VS_FN ChaChaKey load_key(const unsigned char* bytes) {
  ChaChaKey key;
  for (int i = 0; i < 8; ++i)
    key.word[i] = std::uint32_t{bytes[4 * i]} | std::uint32_t{bytes[4 * i + 1]} << 8 |
                  std::uint32_t{bytes[4 * i + 2]} << 16 | std::uint32_t{bytes[4 * i + 3]} << 24;
  return key;
}

}  // namespace veilsum
