// EDEN's quantizer (Vargaftik et al. 2022): the centroids of a standard normal distribution,
// and between which of them a value lies.
#pragma once

#include <cstdint>

#include "element/annotate.h"
#include "element/philox.h"

namespace veilsum {

inline constexpr unsigned kEdenMostBits = 4;
inline constexpr unsigned kEdenMostCodes = 1u << kEdenMostBits;

// The positive centroids of Lloyd and Max, ascending, for 1 to 4 bits; the negative ones
// mirror them. tests/test_eden.py computes them anew.
constexpr double kEdenCentroids[kEdenMostBits][kEdenMostCodes / 2] = {
    {0.79788456080286536},
    {0.45278003463649201, 1.5104176084990954},
    {0.24509417894422167, 0.75600528120587727, 1.3439092785049999, 2.1519457045369873},
    {0.12839502985114701, 0.38804829949029019, 0.65675911853246336, 0.94234045648696135,
     1.2562311973471771, 1.6180463860218826, 2.0690172265313866, 2.732589570995163},
};

// Codes ascend with the centroids: code 0 is the most negative one.
VS_FN double eden_centroid_of(const double* positive, unsigned bits, unsigned code) {
  const unsigned half = 1u << (bits - 1);
  return code < half ? -positive[half - 1 - code] : positive[code - half];
}
VS_FN double eden_centroid(unsigned bits, unsigned code) {
  return eden_centroid_of(kEdenCentroids[bits - 1], bits, code);
}

// What a code stands for before it is rotated back.
VS_FN float eden_value(double centroid, float scale) {
  return static_cast<float>(centroid * static_cast<double>(scale));
}

// Between centroids `code` and `code` + 1.
VS_FN double eden_threshold(unsigned bits, unsigned code) {
  return (eden_centroid(bits, code) + eden_centroid(bits, code + 1)) / 2;
}

// The key of an update's own rotation, from what its chunks say of it. Public: it spreads
// values and hides nothing; what matters is that no two updates have the same one.
VS_FN PhiloxKey eden_key(std::uint64_t update_id, std::uint64_t plan_tag) {
  const PhiloxBlock counter = {
      {static_cast<std::uint32_t>(update_id), static_cast<std::uint32_t>(update_id >> 32),
       static_cast<std::uint32_t>(plan_tag), static_cast<std::uint32_t>(plan_tag >> 32)}};
  const PhiloxBlock words = philox4x32(counter, {{0x4E454445u, 0}});  // "EDEN"
  return {{words.word[0], words.word[1]}};
}

}  // namespace veilsum
