// Codes of four bits that index a table. Included once per CPU level, see block_loops.inl.
//
// AVX-512 looks up sixteen floats or eight words of 64 bits in one instruction, AVX2 needs several
// for as many, and below there is no instruction for it: the twins of each level are under one
// name.
#pragma once

#include "element/fixed_point.h"
#include "element/half.h"
#include "kernels/blocks.inl"
#include "kernels/lanes.inl"
#include "kernels/sum_loops.inl"

namespace veilsum {
namespace {

VS_FN unsigned nibble_at(const unsigned char* packed, std::size_t i) {
  return packed[i / 2] >> (i % 2 * 4) & 15u;
}

// --- a step of several codes ----------------------------------------------------------

// A table in registers, and how many codes it is asked for at once. What stands above a code's four
// bits in a lane is not looked at.

#if defined(__AVX512F__)
constexpr std::size_t kNibbleStep = 16;

struct Products {
  __m512 entry;

  VS_FN Products load(const float* entries) { return {_mm512_loadu_ps(entries)}; }

  VS_FN void look_up(Products table, const unsigned char* packed, float* values) {
    const __m512i halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m512i shifts =
        _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    const __m512i words = _mm512_castsi128_si512(_mm_loadu_si64(packed));
    const __m512i codes = _mm512_srlv_epi32(_mm512_permutexvar_epi32(halves, words), shifts);
    _mm512_storeu_ps(values, _mm512_permutexvar_ps(codes, table.entry));
  }
};

struct Terms {
  __m512i low, high;

  VS_FN Terms load(const std::uint64_t* entries) {
    return {_mm512_loadu_si512(entries), _mm512_loadu_si512(entries + 8)};
  }

  VS_FN void add_eight(const Terms& table, __m512i codes, std::uint64_t* sums) {
    const __m512i terms = _mm512_permutex2var_epi64(table.low, codes, table.high);
    _mm512_storeu_si512(sums, _mm512_add_epi64(_mm512_loadu_si512(sums), terms));
  }

  VS_FN void add(const Terms& table, const unsigned char* packed, std::uint64_t* sums) {
    long long word;
    __builtin_memcpy(&word, packed, sizeof word);
    const __m512i codes = _mm512_set1_epi64(word);
    add_eight(table, _mm512_srlv_epi64(codes, _mm512_setr_epi64(0, 4, 8, 12, 16, 20, 24, 28)),
              sums);
    add_eight(table, _mm512_srlv_epi64(codes, _mm512_setr_epi64(32, 36, 40, 44, 48, 52, 56, 60)),
              sums + 8);
  }
};
#elif defined(__AVX2__)
constexpr std::size_t kNibbleStep = 8;

VS_FN __m256i load_codes(const unsigned char* packed, __m256i shifts) {
  int word;
  __builtin_memcpy(&word, packed, sizeof word);
  return _mm256_srlv_epi32(_mm256_set1_epi32(word), shifts);
}

// The entry of each lane's code out of two halves of a table: three bits choose within a half,
// and the fourth, moved to where blending looks, the half.
VS_FN __m256 entry_of(__m256i codes, __m256 low, __m256 high) {
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, codes),
                          _mm256_permutevar8x32_ps(high, codes),
                          _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
}

struct Products {
  __m256 low, high;

  VS_FN Products load(const float* entries) {
    return {_mm256_loadu_ps(entries), _mm256_loadu_ps(entries + 8)};
  }

  VS_FN void look_up(const Products& table, const unsigned char* packed, float* values) {
    const __m256i codes = load_codes(packed, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    _mm256_storeu_ps(values, entry_of(codes, table.low, table.high));
  }
};

// Words of 64 bits as two tables of their lower and upper halves.
struct Terms {
  __m256 lower[2], upper[2];

  VS_FN Terms load(const std::uint64_t* entries) {
    Terms table;
    const __m256i order = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
    for (int half = 0; half < 2; ++half) {
      const auto* words = reinterpret_cast<const __m256i*>(entries + 8 * half);
      const __m256 a = _mm256_castsi256_ps(_mm256_loadu_si256(words));
      const __m256 b = _mm256_castsi256_ps(_mm256_loadu_si256(words + 1));
      table.lower[half] = _mm256_permutevar8x32_ps(_mm256_shuffle_ps(a, b, 0x88), order);
      table.upper[half] = _mm256_permutevar8x32_ps(_mm256_shuffle_ps(a, b, 0xDD), order);
    }
    return table;
  }

  VS_FN void add_four(__m256 terms, std::uint64_t* sums) {
    auto* place = reinterpret_cast<__m256i*>(sums);
    const __m256i sum = _mm256_add_epi64(_mm256_loadu_si256(place), _mm256_castps_si256(terms));
    _mm256_storeu_si256(place, sum);
  }

  VS_FN void add(const Terms& table, const unsigned char* packed, std::uint64_t* sums) {
    // In such an order that joining lower and upper halves within 128 bits gives that of the
    // coordinates.
    const __m256i codes = load_codes(packed, _mm256_setr_epi32(0, 4, 16, 20, 8, 12, 24, 28));
    const __m256 low = entry_of(codes, table.lower[0], table.lower[1]);
    const __m256 high = entry_of(codes, table.upper[0], table.upper[1]);
    add_four(_mm256_unpacklo_ps(low, high), sums);
    add_four(_mm256_unpackhi_ps(low, high), sums + 4);
  }
};
#else
constexpr std::size_t kNibbleStep = 2;

struct Products {
  const float* entry;

  VS_FN Products load(const float* entries) { return {entries}; }

  VS_FN void look_up(Products table, const unsigned char* packed, float* values) {
    values[0] = table.entry[*packed & 15];
    values[1] = table.entry[*packed >> 4];
  }
};

struct Terms {
  const std::uint64_t* entry;

  VS_FN Terms load(const std::uint64_t* entries) { return {entries}; }

  VS_FN void add(Terms table, const unsigned char* packed, std::uint64_t* sums) {
    sums[0] += table.entry[*packed & 15];
    sums[1] += table.entry[*packed >> 4];
  }
};
#endif

// --- whole blocks ------------------------------------------------------------------------

VS_FN void look_up_block(const unsigned char* packed, std::size_t count, const float* products,
                         float* values) {
  const Products table = Products::load(products);
  std::size_t i = 0;
  for (; i + kNibbleStep <= count; i += kNibbleStep)
    Products::look_up(table, packed + i / 2, values + i);
  for (; i < count; ++i) values[i] = products[nibble_at(packed, i)];
}

VS_FN void add_terms(const unsigned char* packed, std::size_t count, const std::uint64_t* terms,
                     std::uint64_t* sums) {
  const Terms table = Terms::load(terms);
  std::size_t i = 0;
  for (; i + kNibbleStep <= count; i += kNibbleStep) Terms::add(table, packed + i / 2, sums + i);
  for (; i < count; ++i) sums[i] += terms[nibble_at(packed, i)];
}

// Beyond the tile's bound only for codes that the block does not have: what is taken for them does
// not matter.
VS_FN SumLanes bounded_terms(DoubleLanes terms) {
  const auto within = (SumLanes)((terms < 0x1p62) & (terms > -0x1p62));
  return to_fixed_point_lanes(terms) & within;
}

// The terms of kSumLanes codes of a block, from `code` on. `unit` is that of the block, if
// the codes have one.
VS_FN SumLanes terms_from(const TermRule& rule, std::size_t code, SumLanes unit, float scale,
                          double factor) {
  if (rule.unit != 0) {
    SumLanes multiples;
    __builtin_memcpy(&multiples, rule.multiples + code, sizeof multiples);
    return multiples * unit;
  }
  DoubleLanes values;
  __builtin_memcpy(&values, rule.values + code, sizeof values);
  return bounded_terms(values * scale * factor);
}

VS_FN SumLanes unit_term(const TermRule& rule, float scale, double factor) {
  return bounded_terms(DoubleLanes{} + rule.unit * scale * factor);
}

VS_FN void add_nibble_block(const NibbleStream& stream, const TermRule& rule, std::size_t block,
                            std::size_t begin, std::size_t length, std::uint64_t* sums) {
  const float scale = stream.scales[block];
  const SumLanes unit = unit_term(rule, scale, stream.factor);
  std::uint64_t terms[16];
  for (std::size_t code = 0; code < 16; code += kSumLanes) {
    const SumLanes found = terms_from(rule, code, unit, scale, stream.factor);
    __builtin_memcpy(terms + code, &found, sizeof found);
  }
  add_terms(stream.packed + begin / 2, length, terms, sums + begin);
}

#if defined(__AVX512F__)
// 8 * kEights sums stay in registers while every stream is added to them.
template <std::size_t kEights>
VS_FN void add_nibble_unit(const NibbleStream* streams, std::size_t stream_count,
                           const TermRule& rule, std::size_t block, std::size_t begin,
                           std::uint64_t* sums) {
  const __m512i lower = _mm512_setr_epi64(0, 4, 8, 12, 16, 20, 24, 28);
  const __m512i upper = _mm512_setr_epi64(32, 36, 40, 44, 48, 52, 56, 60);
  __m512i held[kEights];
#pragma GCC unroll 8
  for (std::size_t v = 0; v < kEights; ++v) held[v] = _mm512_loadu_si512(sums + begin + 8 * v);
  for (std::size_t k = 0; k < stream_count; ++k) {
    const auto [packed, scales, factor] = streams[k];
    const SumLanes unit = unit_term(rule, scales[block], factor);
    const auto low = (__m512i)terms_from(rule, 0, unit, scales[block], factor);
    const auto high = (__m512i)terms_from(rule, 8, unit, scales[block], factor);
#pragma GCC unroll 8
    for (std::size_t v = 0; v < kEights; ++v) {
      long long word;
      __builtin_memcpy(&word, packed + begin / 2 + v / 2 * 8, sizeof word);
      const __m512i codes = _mm512_srlv_epi64(_mm512_set1_epi64(word), v % 2 == 0 ? lower : upper);
      held[v] = _mm512_add_epi64(held[v], _mm512_permutex2var_epi64(low, codes, high));
    }
  }
#pragma GCC unroll 8
  for (std::size_t v = 0; v < kEights; ++v) _mm512_storeu_si512(sums + begin + 8 * v, held[v]);
}

// How many sums of a block are in registers at a time: as many as a block has, up to 64, which are
// half of the registers.
VS_FN std::size_t add_nibble_units(const NibbleStream* streams, std::size_t stream_count,
                                   const TermRule& rule, const BlockRange& range, std::size_t block,
                                   std::uint64_t* sums) {
  const std::size_t begin = block * range.block;
  const std::size_t left = range.count - begin;
  const std::size_t end = begin + (left < range.block ? left : range.block);
  std::size_t i = begin;
  for (; i + 64 <= end; i += 64) add_nibble_unit<8>(streams, stream_count, rule, block, i, sums);
  for (; i + 32 <= end; i += 32) add_nibble_unit<4>(streams, stream_count, rule, block, i, sums);
  return i;
}
#else
VS_FN std::size_t add_nibble_units(const NibbleStream*, std::size_t, const TermRule&,
                                   const BlockRange& range, std::size_t block, std::uint64_t*) {
  return block * range.block;
}
#endif

void add_nibble_streams(const NibbleStream* streams, std::size_t stream_count,
                        const BlockRange& range, const TermRule& rule, std::uint64_t* sums) {
  const TermRule held = rule;  // a copy that no store to `sums` can change
  for_each_block(range, [&](std::size_t block, std::size_t begin, std::size_t length) {
    // As many coordinates further on is what will be asked for next.
    for (std::size_t k = 0; k < stream_count; ++k)
      prefetch(reinterpret_cast<const char*>(streams[k].packed) + (begin + range.count) / 2,
               length / 2);
    const std::size_t done = add_nibble_units(streams, stream_count, held, range, block, sums);
    if (done == begin + length) return;
    for (std::size_t k = 0; k < stream_count; ++k)
      add_nibble_block(streams[k], held, block, done, begin + length - done, sums);
  });
}

void decode_nibbles(const unsigned char* packed, const BlockRange& range, const float* table,
                    const float* scales, float* values) {
  for_each_block(range, [&](std::size_t block, std::size_t begin, std::size_t length) {
    float products[16];
    for (int code = 0; code < 16; ++code) products[code] = table[code] * scales[block];
    look_up_block(packed + begin / 2, length, products, values + begin);
  });
}

// --- ranks ---------------------------------------------------------------------------------

// Largest rank among `size` bytes' codes.
VS_FN std::uint8_t max_rank(const unsigned char* packed, std::size_t size,
                            const std::uint8_t* rank) {
  std::uint8_t found = 0;
  std::size_t i = 0;
#if defined(__SSSE3__)
  const __m128i ranks = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rank));
  const __m128i nibble = _mm_set1_epi8(15);
  __m128i most = _mm_setzero_si128();
  for (; i + 16 <= size; i += 16) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed + i));
    const __m128i upper = _mm_and_si128(_mm_srli_epi16(codes, 4), nibble);
    most = _mm_max_epu8(most, _mm_shuffle_epi8(ranks, _mm_and_si128(codes, nibble)));
    most = _mm_max_epu8(most, _mm_shuffle_epi8(ranks, upper));
  }
  most = _mm_max_epu8(most, _mm_srli_si128(most, 8));
  most = _mm_max_epu8(most, _mm_srli_si128(most, 4));
  most = _mm_max_epu8(most, _mm_srli_si128(most, 2));
  most = _mm_max_epu8(most, _mm_srli_si128(most, 1));
  found = static_cast<std::uint8_t>(_mm_cvtsi128_si32(most));
#endif
  for (; i < size; ++i) {
    const std::uint8_t low = rank[packed[i] & 15];
    const std::uint8_t high = rank[packed[i] >> 4];
    found = low > found ? low : found;
    found = high > found ? high : found;
  }
  return found;
}

void max_ranks(const unsigned char* packed, const BlockRange& range, const std::uint8_t* rank,
               std::uint8_t* largest) {
  for_each_block(range, [&](std::size_t block, std::size_t begin, std::size_t length) {
    std::uint8_t found = max_rank(packed + begin / 2, length / 2, rank);
    if (length % 2 != 0) {
      const std::uint8_t last = rank[nibble_at(packed, begin + length - 1)];
      found = last > found ? last : found;
    }
    largest[block] = found;
  });
}

}  // namespace
}  // namespace veilsum
