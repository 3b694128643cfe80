// Kernels of masked sums: keystream is made, cut into elements and added with the sums in
// registers; packed words of many uploads are added the same way.
//
// All pointers are to device memory, 16-byte aligned.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/launch.h"
#include "element/aes.h"
#include "element/chacha20.h"
#include "element/ring.h"

namespace veilsum {

// What each generator's kernel takes as a key. A key of AES comes with its rounds expanded and in
// planes: that depends on no block, and so is done once, on the host.
using DeviceChaChaKey = ChaChaKey;
using DeviceAesKey = AesRoundPlanes;

// Sums of a window, uint64 if `wide` and else uint32.
struct DeviceWords {
  void* words;
  std::size_t count;
  bool wide;
};

struct MaskWindow {
  DeviceWords sums;
  bool aes;
  const void* keys;        // DeviceAesKey if `aes`, else DeviceChaChaKey
  std::size_t added;       // so many of them are added,
  std::size_t subtracted;  // and so many behind those subtracted
  std::uint32_t stream;
  unsigned bits;
  std::uint64_t first;  // element of the first word
};

// Packed strings of one width, one every packed_stride() bytes.
struct PackedWindow {
  DeviceWords sums;
  const unsigned char* strings;
  std::size_t count;
  std::size_t stride;
  unsigned bits;
};

// Room of a string of `count` fields: whole tiles of 64 * bits bytes, because a thread reads all
// of its tile, and a vector behind them, because a field is read through up to two words more.
inline std::size_t packed_stride(std::size_t count, unsigned bits) {
  return (count + kTileElements - 1) / kTileElements * bits * kBlockBytes + 16;
}

// Bits of the sums above the ring's become zeros.
struct MaskLaunchers {
  int (*add_masks)(const Launch& launch, const MaskWindow& window);
  int (*add_packed)(const Launch& launch, const PackedWindow& window);
};

}  // namespace veilsum
