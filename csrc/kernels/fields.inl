// Packed fields to words and back, one CPU level's version. Included by ring_loops.inl.
#pragma once

#include "element/bits.h"
#include "kernels/lanes.inl"
#include "kernels/ring_kernels.h"

namespace veilsum {
namespace {

template <bool kSubtract, class Word>
VS_FN void accumulate(Word& sum, Word term) {
  sum = kSubtract ? sum - term : sum + term;
}

// sums[i] +-= field first + i, one by one, any width.
template <bool kSubtract, class Word>
VS_FN void add_fields_singly(const unsigned char* fields, std::size_t first, std::size_t count,
                             unsigned bits, Word* sums) {
  for (std::size_t i = 0; i < count; ++i)
    accumulate<kSubtract>(sums[i], static_cast<Word>(read_field_unmasked(fields, first + i, bits)));
}

// Fields that are whole words of the accumulator need no unpacking.
template <bool kSubtract, class Word>
VS_FN void add_words(const unsigned char* fields, std::size_t count, Word* sums) {
  for (std::size_t i = 0; i < count; ++i) {
    Word field;
    __builtin_memcpy(&field, fields + i * sizeof field, sizeof field);
    accumulate<kSubtract>(sums[i], field);
  }
}

// Vector unpacking: a vector of n fields of b bits is n*b/8 bytes, starts on a byte, and
// fits in one register of words if b is at most the word's width. Each lane fetches the
// word its field starts in and the next one, and shifts the two together. Shift counts
// of a whole word give 0, which C++ operators do not promise: hence intrinsics.
template <class Word>
struct FieldLanes {
  // No shift with a count per lane (base, v2), or no shuffle of 64-bit lanes (v3).
  static constexpr bool kAvailable = false;
};

#if defined(__AVX512F__)
template <>
struct FieldLanes<std::uint32_t> {
  static constexpr bool kAvailable = true;
  static constexpr std::size_t kCount = 16;
  typedef __m512i Vector;
  Vector low, high, right, left;

  VS_FN FieldLanes for_width(unsigned bits) {
    const Vector bit =
        _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                           _mm512_set1_epi32(static_cast<int>(bits)));
    const Vector low = _mm512_srli_epi32(bit, 5);
    const Vector right = _mm512_and_si512(bit, _mm512_set1_epi32(31));
    return {low, _mm512_add_epi32(low, _mm512_set1_epi32(1)), right,
            _mm512_sub_epi32(_mm512_set1_epi32(32), right)};
  }
  VS_FN Vector unpack(const FieldLanes& lanes, const unsigned char* bytes) {
    const Vector words = _mm512_loadu_si512(bytes);
    return _mm512_or_si512(
        _mm512_srlv_epi32(_mm512_permutexvar_epi32(lanes.low, words), lanes.right),
        _mm512_sllv_epi32(_mm512_permutexvar_epi32(lanes.high, words), lanes.left));
  }
  template <bool kSubtract>
  VS_FN void accumulate(std::uint32_t* sums, Vector fields) {
    const Vector old = _mm512_loadu_si512(sums);
    _mm512_storeu_si512(sums,
                        kSubtract ? _mm512_sub_epi32(old, fields) : _mm512_add_epi32(old, fields));
  }
};

template <>
struct FieldLanes<std::uint64_t> {
  static constexpr bool kAvailable = true;
  static constexpr std::size_t kCount = 8;
  typedef __m512i Vector;
  Vector low, high, right, left;

  VS_FN FieldLanes for_width(unsigned bits) {
    const Vector bit = _mm512_mullo_epi64(_mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7),
                                          _mm512_set1_epi64(static_cast<int>(bits)));
    const Vector low = _mm512_srli_epi64(bit, 6);
    const Vector right = _mm512_and_si512(bit, _mm512_set1_epi64(63));
    return {low, _mm512_add_epi64(low, _mm512_set1_epi64(1)), right,
            _mm512_sub_epi64(_mm512_set1_epi64(64), right)};
  }
  VS_FN Vector unpack(const FieldLanes& lanes, const unsigned char* bytes) {
    const Vector words = _mm512_loadu_si512(bytes);
    return _mm512_or_si512(
        _mm512_srlv_epi64(_mm512_permutexvar_epi64(lanes.low, words), lanes.right),
        _mm512_sllv_epi64(_mm512_permutexvar_epi64(lanes.high, words), lanes.left));
  }
  template <bool kSubtract>
  VS_FN void accumulate(std::uint64_t* sums, Vector fields) {
    const Vector old = _mm512_loadu_si512(sums);
    _mm512_storeu_si512(sums,
                        kSubtract ? _mm512_sub_epi64(old, fields) : _mm512_add_epi64(old, fields));
  }
};
#elif defined(__AVX2__)
template <>
struct FieldLanes<std::uint32_t> {
  static constexpr bool kAvailable = true;
  static constexpr std::size_t kCount = 8;
  typedef __m256i Vector;
  Vector low, high, right, left;

  VS_FN FieldLanes for_width(unsigned bits) {
    const Vector bit = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                          _mm256_set1_epi32(static_cast<int>(bits)));
    const Vector low = _mm256_srli_epi32(bit, 5);
    const Vector right = _mm256_and_si256(bit, _mm256_set1_epi32(31));
    return {low, _mm256_add_epi32(low, _mm256_set1_epi32(1)), right,
            _mm256_sub_epi32(_mm256_set1_epi32(32), right)};
  }
  VS_FN Vector unpack(const FieldLanes& lanes, const unsigned char* bytes) {
    const Vector words = _mm256_loadu_si256(reinterpret_cast<const Vector*>(bytes));
    return _mm256_or_si256(
        _mm256_srlv_epi32(_mm256_permutevar8x32_epi32(words, lanes.low), lanes.right),
        _mm256_sllv_epi32(_mm256_permutevar8x32_epi32(words, lanes.high), lanes.left));
  }
  template <bool kSubtract>
  VS_FN void accumulate(std::uint32_t* sums, Vector fields) {
    Vector* const place = reinterpret_cast<Vector*>(sums);
    const Vector old = _mm256_loadu_si256(place);
    _mm256_storeu_si256(place,
                        kSubtract ? _mm256_sub_epi32(old, fields) : _mm256_add_epi32(old, fields));
  }
};
#endif

// Adds whole vectors of fields, the first of which starts on a byte; returns how many
// fields that were.
template <bool kSubtract, class Word>
VS_FN std::size_t add_field_vectors(const unsigned char* fields, std::size_t count, unsigned bits,
                                    Word* sums) {
  typedef FieldLanes<Word> Fields;
  const Fields lanes = Fields::for_width(bits);
  std::size_t done = 0;
  for (; done + Fields::kCount <= count; done += Fields::kCount)
    Fields::template accumulate<kSubtract>(sums + done,
                                           Fields::unpack(lanes, fields + done / 8 * bits));
  return done;
}

// sums[i] +-= field first + i for i < count.
template <bool kSubtract, class Word>
void add_fields(const unsigned char* fields, std::size_t first, std::size_t count, unsigned bits,
                Word* sums) {
  if (bits == 8 * sizeof(Word))
    return add_words<kSubtract>(fields + first * sizeof(Word), count, sums);
  std::size_t done = 0;
  if constexpr (FieldLanes<Word>::kAvailable) {
    const std::size_t to_byte = (8 - first % 8) % 8;  // every eighth field starts on a byte
    done = to_byte < count ? to_byte : count;
    add_fields_singly<kSubtract>(fields, first, done, bits, sums);
    done += add_field_vectors<kSubtract>(fields + (first + done) / 8 * bits, count - done, bits,
                                         sums + done);
  }
  add_fields_singly<kSubtract>(fields, first + done, count - done, bits, sums + done);
}

template <class Word>
void add_packed(const unsigned char* fields, std::size_t count, unsigned bits, Word* sums) {
  add_fields<false>(fields, 0, count, bits, sums);
}

template <class Word>
void pack(const Word* words, std::size_t count, unsigned bits, unsigned char* packed) {
  if (bits == 8 * sizeof(Word)) {
    __builtin_memcpy(packed, words, count * sizeof(Word));
    return;
  }
  const std::uint64_t mask = low_bits(bits);
  std::uint64_t window = 0;
  unsigned filled = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t field = words[i] & mask;
    window |= field << filled;
    filled += bits;
    if (filled < 64) continue;
    store_le64(packed, window);
    packed += 8;
    filled -= 64;
    window = field >> (bits - filled);
  }
  for (unsigned bit = 0; bit < filled; bit += 8)
    *packed++ = static_cast<unsigned char>(window >> bit);
}

}  // namespace
}  // namespace veilsum
