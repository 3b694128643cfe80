// The kernel of a masked upload: values of a window become steps, masks are added, and the words
// are packed, in one pass.
//
// All pointers are to device memory, 16-byte aligned unless it is said otherwise.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/launch.h"
#include "device/mean_launchers.h"
#include "element/philox.h"

namespace veilsum {

// Coordinates of a window that belong to one tensor and share a scale. They begin at a multiple of
// 64 and end in the same tile of 4096.
struct EncodeStretch {
  const unsigned char* values;  // of them, on a multiple of their size
  double gain;                  // steps per unit
  double limit;                 // values are clamped to +-limit first; not with a rotation
  std::uint32_t first;          // coordinate, counted from that of the window
  std::uint32_t count;
  MeanFormat format;
};

struct EncodeCount {
  std::uint32_t not_finite;
  std::uint32_t beyond;
};

// What a site keeps to itself besides values and keys. It lies in memory that is cleared, which the
// arguments of a launch do not.
struct EncodeSecrets {
  PhiloxKey rounding;
  double rotated_limit;   // largest |rotated value| in steps
  double rotation_bound;  // and of what is rotated
};

// Coordinates [first, first + count) of a group: whole tiles of 4096, unless the group ends.
struct EncodeWindow {
  std::uint64_t first;
  std::uint32_t count;
  std::uint32_t group;
  const EncodeStretch* stretch;  // ascending
  std::uint32_t stretches;
  const std::uint32_t* first_stretch;  // the first that ends behind the start of a tile of 512
  const EncodeSecrets* secrets;
  bool stochastic;  // else to nearest

  unsigned rotation_block;  // 0 does not rotate
  PhiloxKey rotation_key;

  unsigned bits;  // of a word
  bool aes;
  const void* keys;        // DeviceAesKey if `aes`, else DeviceChaChaKey
  std::size_t added;       // so many of them are added,
  std::size_t subtracted;  // and so many behind those subtracted

  unsigned char* packed;  // whole tiles of 4096 words; those behind the end are masks of zeros
  EncodeCount* counts;    // is added to: one per stretch, and one for rotated values
};

struct EncodeLaunchers {
  int (*encode)(const Launch& launch, const EncodeWindow& window);
};

}  // namespace veilsum
