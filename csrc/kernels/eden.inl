// The loops of EDEN's quantizer. Included once per CPU level; everything has internal linkage
// and no inline function of the standard library is called (see ring_loops.inl).
#pragma once

#include "element/bits.h"
#include "element/eden.h"
#include "kernels/doubles.inl"
#include "kernels/eden_kernels.h"
#include "kernels/lanes.inl"
#include "kernels/ranks.inl"

namespace veilsum {
namespace {

constexpr std::size_t kEdenRun = 64;  // codes that are packed or unpacked at once

// --- values to codes -----------------------------------------------------------------

// Eight codes, a byte each, are as many bytes as a code has bits. Neighbours move together, then
// pairs, then fours.
template <unsigned kBits>
VS_FN void pack_run(const unsigned char* codes, unsigned char* out) {
  constexpr std::size_t kVectors = kEdenRun / sizeof(WideLanes);
  std::uint64_t packed[kEdenRun / 8];
  for (std::size_t v = 0; v < kVectors; ++v) {
    WideLanes x;
    __builtin_memcpy(&x, codes + v * sizeof x, sizeof x);
    x = (x | x >> (8 - kBits)) & low_bits(2 * kBits) * 0x0001000100010001u;
    x = (x | x >> (16 - 2 * kBits)) & low_bits(4 * kBits) * 0x0000000100000001u;
    x = (x | x >> (32 - 4 * kBits)) & low_bits(8 * kBits);
    __builtin_memcpy(packed + v * kWideLanes, &x, sizeof x);
  }
  for (std::size_t group = 0; group < kEdenRun / 8; ++group)
    __builtin_memcpy(out + kBits * group, packed + group, kBits);
}

template <unsigned kBits>
void quantize_values(const float* values, std::size_t count, const float* thresholds,
                     unsigned char* codes) {
  Bounds<kBits> held;
  Bounds<kBits>::load(held, thresholds);
  unsigned char run[kEdenRun];
  std::uint32_t wide[kEdenRun];
  for (std::size_t begin = 0; begin < count; begin += kEdenRun) {
    for (std::size_t i = 0; i < kEdenRun; i += VS_LANES) {
      RankFloats value;
      __builtin_memcpy(&value, values + begin + i, sizeof value);
      const Lanes code = Bounds<kBits>::rank(held, value);
      __builtin_memcpy(wide + i, &code, sizeof code);
    }
    for (std::size_t i = 0; i < kEdenRun; ++i) run[i] = static_cast<unsigned char>(wide[i]);
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

// --- codes to values -----------------------------------------------------------------

#if VS_LANES >= 8 && !defined(__clang__)

// The codes of a vector of values, at its bytes of `packed`, a run: in the low bits of the lanes,
// with scratch above them.
template <unsigned kBits>
VS_FN Lanes unpack_lanes(const unsigned char* packed, std::size_t part) {
  // Never beyond the run.
  const std::size_t begin = part * (VS_LANES / 8) * kBits;
  const std::size_t from = begin + 8 <= 8 * kBits ? begin : 8 * kBits - 8;
  std::uint64_t word;
  __builtin_memcpy(&word, packed + from, sizeof word);
  WideLanes place;
  for (std::size_t lane = 0; lane < kWideLanes; ++lane) place[lane] = lane * 2 * kBits;
  const WideLanes pairs = (WideLanes{} + (word >> 8 * (begin - from))) >> place;
  constexpr std::uint64_t kUpper = 0xFFFFFFFF00000000u;
  return (Lanes)((pairs & ~kUpper) | (pairs << (32 - kBits) & kUpper));
}

// The table in registers. Shuffles look at as many bits of a lane as they need, so the entries of
// a short table come again and again.
struct EdenTable {
#if VS_LANES == 16
  RankFloats entries;
  VS_FN void load(EdenTable& table, const float* entries, unsigned count) {
    for (unsigned lane = 0; lane < VS_LANES; ++lane) table.entries[lane] = entries[lane % count];
  }
  VS_FN RankFloats look_up(const EdenTable& table, Lanes codes) {
    return __builtin_shuffle(table.entries, codes);
  }
#else
  RankFloats low;
  RankFloats high;
  VS_FN void load(EdenTable& table, const float* entries, unsigned count) {
    for (unsigned lane = 0; lane < VS_LANES; ++lane) {
      table.low[lane] = entries[lane % count];
      table.high[lane] = entries[(lane + VS_LANES) % count];
    }
  }
  VS_FN RankFloats look_up(const EdenTable& table, Lanes codes) {
    return __builtin_shuffle(table.low, table.high, codes);
  }
#endif
};

template <unsigned kBits>
void look_up_values(const unsigned char* codes, std::size_t count, const float* table,
                    float* values) {
  EdenTable held;
  EdenTable::load(held, table, 1u << kBits);
  for (std::size_t begin = 0; begin < count; begin += kEdenRun)
#pragma GCC unroll 8
    for (std::size_t part = 0; part < kEdenRun / VS_LANES; ++part) {
      const RankFloats value =
          EdenTable::look_up(held, unpack_lanes<kBits>(codes + begin / 8 * kBits, part));
      __builtin_memcpy(values + begin + part * VS_LANES, &value, sizeof value);
    }
}

#else

template <unsigned kBits>
void look_up_values(const unsigned char* codes, std::size_t count, const float* table,
                    float* values) {
  for (std::size_t begin = 0; begin < count; begin += 8) {
    std::uint32_t word = 0;
    __builtin_memcpy(&word, codes + begin / 8 * kBits, kBits);
    for (unsigned j = 0; j < 8; ++j)
      values[begin + j] = table[word >> (j * kBits) & ((1u << kBits) - 1)];
  }
}

#endif

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

VS_FN Doubles load_doubles(const float* values) {
  HalfFloats lanes;
  __builtin_memcpy(&lanes, values, sizeof lanes);
  return to_doubles(lanes);
}

double dot(const float* a, const float* b, std::size_t count) {
  Doubles sums[kDotVectors] = {};
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
