// Keystream of both generators in plain vector operations, one CPU level's version. Included
// by ring_loops.inl.
#pragma once

#include "element/aes.h"
#include "element/bits.h"
#include "element/chacha20.h"
#include "kernels/lanes.inl"
#include "kernels/ring_kernels.h"
#include "kernels/wipe.inl"

namespace veilsum {
namespace {

// Both loops write whole vectors of blocks, and kBlockSlack allows for it.
static_assert(VS_LANES <= kBlockSlack);

void write_chacha20(const unsigned char* key_bytes, const KeystreamRange& range,
                    unsigned char* out) {
  ChaChaKey key = load_key(key_bytes);
  for (std::size_t block = 0; block < range.blocks; block += VS_LANES) {
    const std::uint32_t counter = range.first_block + static_cast<std::uint32_t>(block);
    Lanes x[16];
    chacha20_block<LaneRotate>(key, range.nonce, lane_numbers() + counter, x);
    store_blocks(x, out + block * kBlockBytes);
  }
  wipe_local(key);
}

#if VS_LANES == 16
VS_FN WideLanes wide_lane_numbers() { return WideLanes{0, 1, 2, 3, 4, 5, 6, 7}; }
#elif VS_LANES == 8
VS_FN WideLanes wide_lane_numbers() { return WideLanes{0, 1, 2, 3}; }
#else
VS_FN WideLanes wide_lane_numbers() { return WideLanes{0, 1}; }
#endif

// 4 AES blocks per lane: those of 64 bytes of keystream, from `first` on.
VS_FN void write_aes_lanes(const AesRoundPlanes& keys, const ChaChaNonce& nonce, WideLanes first,
                           unsigned char* out) {
  WideLanes half[8];
  aes_keystream(keys, nonce.word, first, half);
  for (std::size_t lane = 0; lane < kWideLanes; ++lane)
    for (std::size_t i = 0; i < 8; ++i) store_le64(out + lane * kBlockBytes + 8 * i, half[i][lane]);
}

void write_aes256(const unsigned char* schedule, const KeystreamRange& range, unsigned char* out) {
  AesRoundPlanes keys;
  aes_slice_schedule(schedule, keys);
  for (std::size_t block = 0; block < range.blocks; block += kWideLanes)
    write_aes_lanes(keys, range.nonce, wide_lane_numbers() + range.first_block + block,
                    out + block * kBlockBytes);
  wipe_local(keys);
}

}  // namespace
}  // namespace veilsum
