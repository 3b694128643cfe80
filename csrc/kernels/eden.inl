// The loops of EDEN's quantizer. Included once per CPU level; everything has internal linkage
// and no inline function of the standard library is called (see ring_loops.inl).
#pragma once

#include "element/eden.h"
#include "kernels/eden_kernels.h"
#include "kernels/lanes.inl"

namespace veilsum {
namespace {

constexpr std::size_t kEdenRun = 64;  // codes that are packed or unpacked at once

// --- packing -----------------------------------------------------------------------

// Eight codes are as many bytes as a code has bits.
template <unsigned kBits>
VS_FN void pack_run(const std::uint32_t* codes, unsigned char* out) {
  for (std::size_t group = 0; group < kEdenRun / 8; ++group) {
    std::uint32_t word = 0;
    for (unsigned j = 0; j < 8; ++j) word |= codes[8 * group + j] << (j * kBits);
    __builtin_memcpy(out + kBits * group, &word, kBits);
  }
}

template <unsigned kBits>
VS_FN void unpack_run(const unsigned char* in, std::uint32_t* codes) {
  for (std::size_t group = 0; group < kEdenRun / 8; ++group) {
    std::uint32_t word = 0;
    __builtin_memcpy(&word, in + kBits * group, kBits);
    for (unsigned j = 0; j < 8; ++j)
      codes[8 * group + j] = word >> (j * kBits) & ((1u << kBits) - 1);
  }
}

// --- values to codes and back ------------------------------------------------------------

template <unsigned kBits>
void quantize_values(const float* values, std::size_t count, const float* thresholds,
                     unsigned char* codes) {
  std::uint32_t run[kEdenRun];
  for (std::size_t begin = 0; begin < count; begin += kEdenRun) {
    for (std::size_t i = 0; i < kEdenRun; ++i)
      run[i] = eden_code<kBits>(values[begin + i], thresholds);
    pack_run<kBits>(run, codes + begin / 8 * kBits);
  }
}

void quantize(const float* values, std::size_t count, unsigned bits, const float* thresholds,
              unsigned char* codes) {
  switch (bits) {
    case 1:
      return quantize_values<1>(values, count, thresholds, codes);
    case 2:
      return quantize_values<2>(values, count, thresholds, codes);
    case 3:
      return quantize_values<3>(values, count, thresholds, codes);
    default:
      return quantize_values<4>(values, count, thresholds, codes);
  }
}

// The table in registers, 16 entries, of which codes of fewer bits use the first.
struct EdenTable {
#if VS_LANES == 16 && !defined(__clang__)
  Lanes entries;
  VS_FN void load(EdenTable& table, const float* entries) {
    __builtin_memcpy(&table.entries, entries, sizeof table.entries);
  }
  VS_FN void look_up(const EdenTable& table, const std::uint32_t* codes, float* values) {
    for (std::size_t i = 0; i < kEdenRun; i += VS_LANES) {
      Lanes lanes;
      __builtin_memcpy(&lanes, codes + i, sizeof lanes);
      lanes = __builtin_shuffle(table.entries, lanes);
      __builtin_memcpy(values + i, &lanes, sizeof lanes);
    }
  }
#elif VS_LANES == 8 && !defined(__clang__)
  Lanes low;
  Lanes high;
  VS_FN void load(EdenTable& table, const float* entries) {
    __builtin_memcpy(&table.low, entries, sizeof table.low);
    __builtin_memcpy(&table.high, entries + VS_LANES, sizeof table.high);
  }
  VS_FN void look_up(const EdenTable& table, const std::uint32_t* codes, float* values) {
    for (std::size_t i = 0; i < kEdenRun; i += VS_LANES) {
      Lanes lanes;
      __builtin_memcpy(&lanes, codes + i, sizeof lanes);
      lanes = __builtin_shuffle(table.low, table.high, lanes);
      __builtin_memcpy(values + i, &lanes, sizeof lanes);
    }
  }
#else
  const float* entries;
  VS_FN void load(EdenTable& table, const float* entries) { table.entries = entries; }
  VS_FN void look_up(const EdenTable& table, const std::uint32_t* codes, float* values) {
    for (std::size_t i = 0; i < kEdenRun; ++i) values[i] = table.entries[codes[i]];
  }
#endif
};

template <unsigned kBits>
void look_up_values(const unsigned char* codes, std::size_t count, const float* table,
                    float* values) {
  float entries[kEdenMostCodes] = {};
  for (unsigned code = 0; code < 1u << kBits; ++code) entries[code] = table[code];
  EdenTable held;
  EdenTable::load(held, entries);
  std::uint32_t run[kEdenRun];
  for (std::size_t begin = 0; begin < count; begin += kEdenRun) {
    unpack_run<kBits>(codes + begin / 8 * kBits, run);
    EdenTable::look_up(held, run, values + begin);
  }
}

void look_up(const unsigned char* codes, std::size_t count, unsigned bits, const float* table,
             float* values) {
  switch (bits) {
    case 1:
      return look_up_values<1>(codes, count, table, values);
    case 2:
      return look_up_values<2>(codes, count, table, values);
    case 3:
      return look_up_values<3>(codes, count, table, values);
    default:
      return look_up_values<4>(codes, count, table, values);
  }
}

// --- sums of products --------------------------------------------------------------------

constexpr std::size_t kDotLanes = 16;
constexpr std::size_t kDotVectors = kDotLanes / kWideLanes;
typedef double DotLanes __attribute__((vector_size(4 * VS_LANES)));
typedef float DotFloats __attribute__((vector_size(2 * VS_LANES)));

VS_FN DotLanes load_doubles(const float* values) {
  DotFloats lanes;
  __builtin_memcpy(&lanes, values, sizeof lanes);
  return __builtin_convertvector(lanes, DotLanes);
}

double dot(const float* a, const float* b, std::size_t count) {
  DotLanes sums[kDotVectors] = {};
  for (std::size_t begin = 0; begin < count; begin += kDotLanes)
    for (std::size_t v = 0; v < kDotVectors; ++v)
      sums[v] +=
          load_doubles(a + begin + v * kWideLanes) * load_doubles(b + begin + v * kWideLanes);
  double lanes[kDotLanes];
  __builtin_memcpy(lanes, sums, sizeof lanes);
  for (std::size_t apart = kDotLanes / 2; apart > 0; apart /= 2)
    for (std::size_t lane = 0; lane < apart; ++lane) lanes[lane] += lanes[lane + apart];
  return lanes[0];
}

constexpr EdenKernels kEdenKernels = {.quantize = quantize, .look_up = look_up, .dot = dot};

}  // namespace
}  // namespace veilsum
