// A vector of VS_LANES 32-bit words, and what the ring loops do with it that plain
// operators cannot. Included once per CPU level, inside that level's flags.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "element/chacha20.h"
#include "element/ring.h"

namespace veilsum {
namespace {

typedef std::uint32_t Lanes __attribute__((vector_size(4 * VS_LANES)));
typedef std::int32_t SignedLanes __attribute__((vector_size(4 * VS_LANES)));
typedef std::uint64_t WideLanes __attribute__((vector_size(4 * VS_LANES)));
constexpr std::size_t kWideLanes = VS_LANES / 2;

// Two-operand shuffle with constant indices; indices from VS_LANES on pick from `b`.
#if defined(__clang__)
#define VS_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define VS_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Lanes){__VA_ARGS__})
#endif

#if VS_LANES == 16
VS_FN Lanes lane_numbers() { return Lanes{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }
#elif VS_LANES == 8
VS_FN Lanes lane_numbers() { return Lanes{0, 1, 2, 3, 4, 5, 6, 7}; }
#else
VS_FN Lanes lane_numbers() { return Lanes{0, 1, 2, 3}; }
#endif

// Whether a lane is negative.
VS_FN bool any_sign(SignedLanes x) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask((__m512i)x) != 0;
#elif defined(__AVX__)
  return _mm256_movemask_ps((__m256)x) != 0;
#else
  std::int32_t any = 0;
  for (std::size_t lane = 0; lane < VS_LANES; ++lane) any |= x[lane];
  return any < 0;
#endif
}

// Compilers find the rotate instruction of AVX-512, but not that a rotation by whole
// bytes is one byte shuffle on AVX2: half again as fast.
struct LaneRotate {
  template <int kBits>
  VS_FN Lanes left(Lanes x) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    if constexpr (kBits == 16)
      return (Lanes)_mm256_shuffle_epi8(
          (__m256i)x, _mm256_setr_epi8(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13, 2, 3,
                                       0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    if constexpr (kBits == 8)
      return (Lanes)_mm256_shuffle_epi8(
          (__m256i)x, _mm256_setr_epi8(3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14, 3, 0,
                                       1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14));
#endif
    return (x << kBits) | (x >> (32 - kBits));
  }
};

VS_FN void store_lanes(unsigned char* out, Lanes x) { __builtin_memcpy(out, &x, sizeof x); }

// Shuffles that work within each quarter (128 bits) of a vector.
#if VS_LANES == 16
VS_FN Lanes low_words(Lanes a, Lanes b) {
  return VS_SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}
VS_FN Lanes high_words(Lanes a, Lanes b) {
  return VS_SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
VS_FN Lanes low_pairs(Lanes a, Lanes b) {
  return VS_SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
}
VS_FN Lanes high_pairs(Lanes a, Lanes b) {
  return VS_SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
#elif VS_LANES == 8
VS_FN Lanes low_words(Lanes a, Lanes b) { return VS_SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13); }
VS_FN Lanes high_words(Lanes a, Lanes b) { return VS_SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15); }
VS_FN Lanes low_pairs(Lanes a, Lanes b) { return VS_SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13); }
VS_FN Lanes high_pairs(Lanes a, Lanes b) { return VS_SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15); }
#else
VS_FN Lanes low_words(Lanes a, Lanes b) { return VS_SHUFFLE(a, b, 0, 4, 1, 5); }
VS_FN Lanes high_words(Lanes a, Lanes b) { return VS_SHUFFLE(a, b, 2, 6, 3, 7); }
VS_FN Lanes low_pairs(Lanes a, Lanes b) { return VS_SHUFFLE(a, b, 0, 1, 4, 5); }
VS_FN Lanes high_pairs(Lanes a, Lanes b) { return VS_SHUFFLE(a, b, 2, 3, 6, 7); }
#endif

// Transposes words 4g .. 4g+3 of all blocks: afterwards quarter q of x[k] holds these
// four words of block 4q + k.
VS_FN void transpose_quarters(Lanes x[4]) {
  const Lanes a = low_words(x[0], x[1]);
  const Lanes b = high_words(x[0], x[1]);
  const Lanes c = low_words(x[2], x[3]);
  const Lanes d = high_words(x[2], x[3]);
  x[0] = low_pairs(a, c);
  x[1] = high_pairs(a, c);
  x[2] = low_pairs(b, d);
  x[3] = high_pairs(b, d);
}

// Writes block(s) 4q + k for one k, all q. a, b, c, d are x[k] of the word groups 0 .. 3.
VS_FN void store_quarters(Lanes a, Lanes b, Lanes c, Lanes d, unsigned char* out) {
  constexpr std::size_t kStride = 4 * kBlockBytes;
#if VS_LANES == 16
  const Lanes ab_low = VS_SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
  const Lanes ab_high =
      VS_SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  const Lanes cd_low = VS_SHUFFLE(c, d, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
  const Lanes cd_high =
      VS_SHUFFLE(c, d, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
#define VS_EVEN 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define VS_ODD 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
  store_lanes(out, VS_SHUFFLE(ab_low, cd_low, VS_EVEN));
  store_lanes(out + kStride, VS_SHUFFLE(ab_low, cd_low, VS_ODD));
  store_lanes(out + 2 * kStride, VS_SHUFFLE(ab_high, cd_high, VS_EVEN));
  store_lanes(out + 3 * kStride, VS_SHUFFLE(ab_high, cd_high, VS_ODD));
#undef VS_EVEN
#undef VS_ODD
#elif VS_LANES == 8
  store_lanes(out, VS_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11));
  store_lanes(out + 32, VS_SHUFFLE(c, d, 0, 1, 2, 3, 8, 9, 10, 11));
  store_lanes(out + kStride, VS_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15));
  store_lanes(out + kStride + 32, VS_SHUFFLE(c, d, 4, 5, 6, 7, 12, 13, 14, 15));
#else
  static_cast<void>(kStride);
  store_lanes(out, a);
  store_lanes(out + 16, b);
  store_lanes(out + 32, c);
  store_lanes(out + 48, d);
#endif
}

// x[w] holds word w of VS_LANES blocks; writes the blocks one after the other.
VS_FN void store_blocks(Lanes x[16], unsigned char* out) {
  for (int group = 0; group < 4; ++group) transpose_quarters(x + 4 * group);
  for (int k = 0; k < 4; ++k)
    store_quarters(x[k], x[4 + k], x[8 + k], x[12 + k], out + k * kBlockBytes);
}

// Big-endian hosts would need the words swapped before they are stored.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);

}  // namespace
}  // namespace veilsum
