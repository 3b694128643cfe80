// The loops of EDEN's quantizer, as one CPU level provides them. Nothing is checked here:
// arguments were checked one layer up. Every level gives the same bits.
//
// Counts are multiples of 64, and codes have 1 to 4 bits, densely packed: code j is bits
// [j*bits, (j+1)*bits) of one little-endian bit string.
#pragma once

#include <cstddef>

namespace veilsum {

struct EdenKernels {
  // Codes of values: how many of the 2^bits - 1 ascending thresholds lie below.
  void (*quantize)(const float* values, std::size_t count, unsigned bits, const float* thresholds,
                   unsigned char* codes);
  // values[j] = table[code j]; the table has 2^bits entries.
  void (*look_up)(const unsigned char* codes, std::size_t count, unsigned bits, const float* table,
                  float* values);
  // Sum of products, in double. Lane j % 16 adds up its products one after the other, then
  // lanes 8 apart are added, 4 apart, 2 apart and 1 apart.
  double (*dot)(const float* a, const float* b, std::size_t count);
};

}  // namespace veilsum
