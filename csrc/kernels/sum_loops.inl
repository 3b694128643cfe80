// Sums of encoded values in fixed point, and the means of such sums. Included once per CPU
// level; everything has internal linkage and no inline function of the standard library is
// called (see ring_loops.inl).
//
// Sums are in unsigned words: the same bits as signed ones, and a caller that changes an
// array while it is added gets a wrong sum, not undefined behaviour.
//
// Several updates are added page by page: a page of the first, the same coordinates of the
// second, and so on, while the sums of these coordinates stay in the first-level cache. That
// reads few streams at a time. Side by side they would share few cache sets, because large
// arrays tend to begin at the same place of a page, and the streams that a CPU reads ahead by
// itself are fewer than the updates. What comes kPagesAhead pages later is fetched meanwhile, into
// the second-level cache: in the first it would drive out the sums.
#pragma once

#include "element/fixed_point.h"
#include "element/half.h"
#include "element/quotient.h"
#include "kernels/codec_kernels.h"
#include "kernels/lanes.inl"
#include "kernels/sum_lanes.inl"

namespace veilsum {
namespace {

constexpr std::size_t kPageBytes = 4096;
constexpr std::size_t kPagesAhead = 16;

// Four vectors at a time: enough that one addition need not wait for another.
constexpr std::size_t kSumVectors = 4;
constexpr std::size_t kSumBlock = kSumVectors * kSumLanes;

// --- what is added -----------------------------------------------------------------

// Each kind says how values of one stream are loaded and what of them is checked.
struct FloatValues {
  typedef Stream Source;
  static constexpr std::size_t kBytes = 4;

  VS_FN FloatLanes load(const Source& stream, std::size_t i) {
    FloatLanes lanes;
    __builtin_memcpy(&lanes, stream.values + i, sizeof lanes);
    return lanes;
  }
  VS_FN float load_one(const Source& stream, std::size_t i) { return stream.values[i]; }
  // Sets the sign of lanes of `beyond` where one of kSumBlock values is beyond the stream's limit,
  // or NaN: patterns order like magnitudes.
  VS_FN void check(const Source& stream, std::size_t i, SignedLanes& beyond) {
    const auto limit = static_cast<std::int32_t>(bits_of_float(stream.limit));
    for (std::size_t at = 0; at < kSumBlock; at += VS_LANES) {
      SignedLanes patterns;
      __builtin_memcpy(&patterns, stream.values + i + at, sizeof patterns);
      beyond |= limit - (patterns & 0x7FFFFFFF);
    }
  }
  VS_FN bool is_beyond(const Source& stream, float value) {
    return (bits_of_float(value) & 0x7FFFFFFFu) > bits_of_float(stream.limit);
  }
};

typedef std::uint16_t HalfLanes __attribute__((vector_size(2 * kSumLanes)));
typedef std::uint32_t WordLanes __attribute__((vector_size(4 * kSumLanes)));

VS_FN HalfLanes load_halves(const WireHalf* values) {
  HalfLanes lanes;
  __builtin_memcpy(&lanes, values, sizeof lanes);
  return lanes;
}

// Halves lie in chunks that nobody changes: nothing is checked.
struct HalfValues {
  typedef HalfStream Source;
  static constexpr std::size_t kBytes = 2;
  VS_FN void check(const Source&, std::size_t, SignedLanes&) {}
  VS_FN bool is_beyond(const Source&, float) { return false; }
};

struct Float16Lanes : HalfValues {
  VS_FN FloatLanes load(const Source& stream, std::size_t i) {
    const HalfLanes halves = load_halves(stream.values + i);
#if defined(__AVX512F__)  // both are exact, also for subnormal halves
    return (FloatLanes)_mm256_cvtph_ps((__m128i)halves);
#elif defined(__F16C__)
    return (FloatLanes)_mm_cvtph_ps(_mm_cvtsi64_si128((long long)halves));
#else
    FloatLanes lanes;
    for (std::size_t lane = 0; lane < kSumLanes; ++lane) lanes[lane] = widen_half(halves[lane]);
    return lanes;
#endif
  }
  VS_FN float load_one(const Source& stream, std::size_t i) { return widen_half(stream.values[i]); }
};

struct Brain16Lanes : HalfValues {
  VS_FN FloatLanes load(const Source& stream, std::size_t i) {
    const HalfLanes halves = load_halves(stream.values + i);
#if defined(__AVX512F__)
    return (FloatLanes)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)halves), 16);
#elif defined(__SSE4_1__) && VS_LANES == 8
    return (FloatLanes)_mm_slli_epi32(_mm_cvtepu16_epi32(_mm_cvtsi64_si128((long long)halves)), 16);
#else
    return (FloatLanes)(__builtin_convertvector(halves, WordLanes) << 16);
#endif
  }
  VS_FN float load_one(const Source& stream, std::size_t i) {
    return widen_brain(stream.values[i]);
  }
};

// --- pages ---------------------------------------------------------------------------

VS_FN void prefetch(const char* from, std::size_t size) {
  for (std::size_t at = 0; at < size; at += 64) __builtin_prefetch(from + at);
}

// To be read much later.
VS_FN void prefetch_far(const char* from, std::size_t size) {
  for (std::size_t at = 0; at < size; at += 64) __builtin_prefetch(from + at, 0, 2);
}

VS_FN void add_lanes(std::uint64_t* sums, SumLanes terms) {
  SumLanes held;
  __builtin_memcpy(&held, sums, sizeof held);
  held += terms;
  __builtin_memcpy(sums, &held, sizeof held);
}

// Streams that are added at once: a sum is loaded and stored once for all of them. With more,
// pages of large arrays, which begin at the same cache set, drive each other out.
constexpr std::size_t kTogether = 2;

template <class Values>
VS_FN SumLanes terms_of(const typename Values::Source& stream, std::size_t i) {
  return to_fixed_point_lanes(to_double_lanes(Values::load(stream, i)) * stream.factor);
}

// Adds coordinates [begin, end) of kCount streams and fetches as many from each `ahead` on. True
// if a value is beyond its stream's limit.
template <class Values, std::size_t kCount>
VS_FN bool add_pages(const typename Values::Source* streams, std::size_t begin, std::size_t end,
                     const char* const* ahead, std::uint64_t* sums) {
  typename Values::Source held[kCount];  // copies that no store to `sums` can change
  for (std::size_t k = 0; k < kCount; ++k) held[k] = streams[k];
  SignedLanes beyond = {};
  std::size_t i = begin;
  for (; i + kSumBlock <= end; i += kSumBlock) {
#pragma GCC unroll 2
    for (std::size_t k = 0; k < kCount; ++k) {
      prefetch_far(ahead[k] + (i - begin) * Values::kBytes, kSumBlock * Values::kBytes);
      Values::check(held[k], i, beyond);
    }
#pragma GCC unroll 4
    for (std::size_t v = i; v < i + kSumBlock; v += kSumLanes) {
      SumLanes terms = terms_of<Values>(held[0], v);
      if constexpr (kCount == 2) terms += terms_of<Values>(held[1], v);
      add_lanes(sums + v, terms);
    }
  }
  bool any_beyond = false;
  for (; i < end; ++i)
    for (const auto& stream : held) {
      const float value = Values::load_one(stream, i);
      sums[i] += to_fixed_point(static_cast<double>(value) * stream.factor);
      any_beyond |= Values::is_beyond(stream, value);
    }
  return any_beyond || any_sign(beyond);
}

// False if a value is beyond its stream's limit.
template <class Values>
VS_FN bool add_streams(const typename Values::Source* streams, std::size_t stream_count,
                       std::size_t count, std::uint64_t* sums) {
  constexpr std::size_t kPage = kPageBytes / Values::kBytes;
  bool any_beyond = false;
  for (std::size_t begin = 0; begin < count; begin += kPage) {
    const std::size_t end = count - begin < kPage ? count : begin + kPage;
    for (std::size_t k = 0; k < stream_count; k += kTogether) {
      const char* ahead[kTogether];
      for (std::size_t j = 0; j < kTogether; ++j) {
        const std::size_t later = k + j + kPagesAhead;
        ahead[j] = reinterpret_cast<const char*>(streams[later % stream_count].values +
                                                 (begin + later / stream_count * kPage));
      }
      any_beyond |= k + 1 < stream_count
                        ? add_pages<Values, 2>(streams + k, begin, end, ahead, sums)
                        : add_pages<Values, 1>(streams + k, begin, end, ahead, sums);
    }
  }
  return !any_beyond;
}

bool add_f32_streams(const Stream* streams, std::size_t stream_count, std::size_t count,
                     std::uint64_t* sums) {
  return add_streams<FloatValues>(streams, stream_count, count, sums);
}

void add_f16_streams(const HalfStream* streams, std::size_t stream_count, std::size_t count,
                     std::uint64_t* sums) {
  add_streams<Float16Lanes>(streams, stream_count, count, sums);
}

void add_bf16_streams(const HalfStream* streams, std::size_t stream_count, std::size_t count,
                      std::uint64_t* sums) {
  add_streams<Brain16Lanes>(streams, stream_count, count, sums);
}

void add_f32(const WireFloat* values, std::size_t count, double factor, std::uint64_t* sums) {
  const Stream stream = {values, factor, 0x1.fffffep127f};
  add_f32_streams(&stream, 1, count, sums);
}

void add_f64(const WireDouble* values, std::size_t count, double factor, std::uint64_t* sums) {
  for (std::size_t i = 0; i < count; ++i) sums[i] += to_fixed_point(values[i] * factor);
}

// --- int8 ----------------------------------------------------------------------------

#if defined(__AVX2__) && !defined(__AVX512DQ__)
// Products of a code and a 64-bit multiplier modulo 2^64, without the 64-bit multiplication
// this level lacks: multiplier = high * 2^32 + low with both parts signed, and a code times
// either is one signed multiplication of 32 bits.
struct Multiplier {
  __m256i low, high;
  VS_FN Multiplier of(std::uint64_t multiplier) {
    const auto low = static_cast<std::int32_t>(multiplier);
    const auto high = (multiplier - static_cast<std::uint64_t>(std::int64_t{low})) >> 32;
    return {_mm256_set1_epi64x(low), _mm256_set1_epi64x(static_cast<long long>(high))};
  }
};

VS_FN SumLanes code_times(const std::int8_t* codes, const Multiplier& multiplier) {
  int four;
  __builtin_memcpy(&four, codes, sizeof four);
  const __m256i wide = _mm256_cvtepi8_epi64(_mm_cvtsi32_si128(four));
  const __m256i low = _mm256_mul_epi32(wide, multiplier.low);
  return (SumLanes)low + ((SumLanes)_mm256_mul_epi32(wide, multiplier.high) << 32);
}
#else
struct Multiplier {
  SumLanes value;
  VS_FN Multiplier of(std::uint64_t multiplier) { return {SumLanes{} + multiplier}; }
};

VS_FN SumLanes code_times(const std::int8_t* codes, const Multiplier& multiplier) {
#if defined(__AVX512DQ__)
  const auto wide = (SumLanes)_mm512_cvtepi8_epi64(_mm_loadl_epi64((const __m128i_u*)codes));
#else
  SumLanes wide;
  for (std::size_t lane = 0; lane < kSumLanes; ++lane)
    wide[lane] = static_cast<std::uint64_t>(std::int64_t{codes[lane]});
#endif
  return wide * multiplier.value;
}
#endif

// Streams whose codes are added at once: as many as there are registers for their multipliers. A
// page is half as long as those of floats, so that more of them fit beside the sums.
constexpr std::size_t kCodesTogether = VS_LANES == 16 ? 6 : 2;
constexpr std::size_t kCodePage = 2048;

template <std::size_t kCount>
VS_FN void add_code_block(const CodeStream* streams, std::size_t i, std::uint64_t* sums) {
  Multiplier factors[kCount];
  for (std::size_t k = 0; k < kCount; ++k)
    factors[k] = Multiplier::of(streams[k].multipliers[i / kInt8Block]);
#pragma GCC unroll 16
  for (std::size_t at = i; at < i + kInt8Block; at += kSumLanes) {
    SumLanes terms = code_times(streams[0].codes + at, factors[0]);
#pragma GCC unroll 6
    for (std::size_t k = 1; k < kCount; ++k) terms += code_times(streams[k].codes + at, factors[k]);
    add_lanes(sums + at, terms);
  }
}

// Adds coordinates [begin, end) of kCount streams and fetches as many from each `ahead` on.
template <std::size_t kCount>
VS_FN void add_code_pages(const CodeStream* streams, std::size_t begin, std::size_t end,
                          const char* const* ahead, std::uint64_t* sums) {
  CodeStream held[kCount];  // copies that no store to `sums` can change
  for (std::size_t k = 0; k < kCount; ++k) held[k] = streams[k];
  std::size_t i = begin;
  for (; i + kInt8Block <= end; i += kInt8Block) {
    for (std::size_t k = 0; k < kCount; ++k) prefetch_far(ahead[k] + (i - begin), kInt8Block);
    add_code_block<kCount>(held, i, sums);
  }
  for (; i < end; ++i)
    for (const CodeStream& stream : held)
      sums[i] += static_cast<std::uint64_t>(std::int64_t{stream.codes[i]}) *
                 stream.multipliers[i / kInt8Block];
}

// add_code_pages() of as many streams as there are, up to kMost.
template <std::size_t kMost>
VS_FN void add_some_codes(const CodeStream* streams, std::size_t left, std::size_t begin,
                          std::size_t end, const char* const* ahead, std::uint64_t* sums) {
  if constexpr (kMost > 1)
    if (left < kMost) return add_some_codes<kMost - 1>(streams, left, begin, end, ahead, sums);
  add_code_pages<kMost>(streams, begin, end, ahead, sums);
}

void add_int8_streams(const CodeStream* streams, std::size_t stream_count, std::size_t count,
                      std::uint64_t* sums) {
  for (std::size_t begin = 0; begin < count; begin += kCodePage) {
    const std::size_t end = count - begin < kCodePage ? count : begin + kCodePage;
    for (std::size_t k = 0; k < stream_count; k += kCodesTogether) {
      const char* ahead[kCodesTogether];
      for (std::size_t j = 0; j < kCodesTogether; ++j) {
        const std::size_t later = k + j + kPagesAhead;
        ahead[j] = reinterpret_cast<const char*>(streams[later % stream_count].codes +
                                                 (begin + later / stream_count * kCodePage));
      }
      add_some_codes<kCodesTogether>(streams + k, stream_count - k, begin, end, ahead, sums);
    }
  }
}

void add_int8(const std::int8_t* codes, const std::uint64_t* multipliers, std::size_t count,
              std::uint64_t* sums) {
  const CodeStream stream = {codes, multipliers};
  add_int8_streams(&stream, 1, count, sums);
}

// --- means -----------------------------------------------------------------------

constexpr std::size_t kMeanBlock = 64;
constexpr std::size_t kMeansAhead = 4096 * sizeof(float);

VS_FN std::uint64_t round_block(const std::uint64_t* sums, std::size_t count,
                                const QuotientRule& rule, WireFloat* rounded) {
  std::uint64_t undecided = 0;
  for (std::size_t i = 0; i < count; ++i)
    rounded[i] = static_cast<float>(round_quotient(sums[i], rule, undecided));
  if (undecided >> 63 == 0) return 0;
  undecided = 0;
  for (std::size_t i = 0; i < count; ++i)
    rounded[i] = static_cast<float>(round_quotient_exactly(sums[i], rule, undecided));
  return undecided;
}

bool round_quotients(const std::uint64_t* sums, std::size_t count, const QuotientRule& rule,
                     WireFloat* rounded) {
  const QuotientRule held = rule;  // a copy that no store to `rounded` can change
  std::uint64_t undecided = 0;
  std::size_t i = 0;
  for (; i + kMeanBlock <= count; i += kMeanBlock) {
    // Where the means of the next tile will be written.
    prefetch(reinterpret_cast<const char*>(rounded + i) + kMeansAhead, kMeanBlock * sizeof(float));
    undecided |= round_block(sums + i, kMeanBlock, held, rounded + i);
  }
  undecided |= round_block(sums + i, count - i, held, rounded + i);
  return undecided >> 63 == 0;
}

}  // namespace
}  // namespace veilsum
