// Packed fields to words and back, one CPU level's version. Included by ring_loops.inl.
//
// A vector of n fields of b bits is n*b/8 bytes, so it starts on a byte and fits into one
// register of n words. Unpacking, each lane fetches the word its field starts in and the
// next one, and shifts the two together. Packing, each lane fetches every field that
// reaches into its word. Where to fetch and how far to shift follows from the width alone.
#pragma once

#include "element/bits.h"
#include "kernels/lanes.inl"
#include "kernels/ring_kernels.h"

namespace veilsum {
namespace {

// What unpacking and packing need beyond operators: fetching any lane, and shifts by a
// count per lane that give 0 from the word's width on (C++ leaves those undefined).
template <class Word>
struct FieldUnit {
  // No such shift (base, v2), or no such fetch of 64-bit lanes (v3).
  static constexpr bool kAvailable = false;
};

#if defined(__AVX512F__)
template <>
struct FieldUnit<std::uint32_t> {
  static constexpr bool kAvailable = true;
  typedef Lanes Vector;
  VS_FN Vector fetch(Vector x, Vector lane) {
    return (Vector)_mm512_permutexvar_epi32((__m512i)lane, (__m512i)x);
  }
  VS_FN Vector right(Vector x, Vector n) {
    return (Vector)_mm512_srlv_epi32((__m512i)x, (__m512i)n);
  }
  VS_FN Vector left(Vector x, Vector n) {
    return (Vector)_mm512_sllv_epi32((__m512i)x, (__m512i)n);
  }
};

template <>
struct FieldUnit<std::uint64_t> {
  static constexpr bool kAvailable = true;
  typedef WideLanes Vector;
  VS_FN Vector fetch(Vector x, Vector lane) {
    return (Vector)_mm512_permutexvar_epi64((__m512i)lane, (__m512i)x);
  }
  VS_FN Vector right(Vector x, Vector n) {
    return (Vector)_mm512_srlv_epi64((__m512i)x, (__m512i)n);
  }
  VS_FN Vector left(Vector x, Vector n) {
    return (Vector)_mm512_sllv_epi64((__m512i)x, (__m512i)n);
  }
};
#elif defined(__AVX2__)
template <>
struct FieldUnit<std::uint32_t> {
  static constexpr bool kAvailable = true;
  typedef Lanes Vector;
  VS_FN Vector fetch(Vector x, Vector lane) {
    return (Vector)_mm256_permutevar8x32_epi32((__m256i)x, (__m256i)lane);
  }
  VS_FN Vector right(Vector x, Vector n) {
    return (Vector)_mm256_srlv_epi32((__m256i)x, (__m256i)n);
  }
  VS_FN Vector left(Vector x, Vector n) {
    return (Vector)_mm256_sllv_epi32((__m256i)x, (__m256i)n);
  }
};
#endif

template <class Vector>
VS_FN Vector load_vector(const void* from) {
  Vector vector;
  __builtin_memcpy(&vector, from, sizeof vector);
  return vector;
}

template <bool kSubtract, class Word>
VS_FN Word accumulated(Word sum, Word term) {
  return kSubtract ? sum - term : sum + term;
}

// --- unpacking -------------------------------------------------------------------

// sums[i] +-= field first + i, one by one, any width.
template <bool kSubtract, class Word>
VS_FN void add_fields_singly(const unsigned char* fields, std::size_t first, std::size_t count,
                             unsigned bits, Word* sums) {
  for (std::size_t i = 0; i < count; ++i)
    sums[i] = accumulated<kSubtract>(
        sums[i], static_cast<Word>(read_field_unmasked(fields, first + i, bits)));
}

// Fields that are whole words of the accumulator need no unpacking.
template <bool kSubtract, class Word>
VS_FN void add_words(const unsigned char* fields, std::size_t count, Word* sums) {
  for (std::size_t i = 0; i < count; ++i) {
    Word field;
    __builtin_memcpy(&field, fields + i * sizeof field, sizeof field);
    sums[i] = accumulated<kSubtract>(sums[i], field);
  }
}

// Where each lane's field lies in a vector of them, and how to get it there.
template <class Word>
struct UnpackPlan {
  typedef FieldUnit<Word> Unit;
  typedef typename Unit::Vector Vector;
  static constexpr std::size_t kLanes = sizeof(Vector) / sizeof(Word);
  static constexpr unsigned kWordBits = 8 * sizeof(Word);
  Vector start, next, right, left;

  VS_FN void fill(UnpackPlan& plan, unsigned bits) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      plan.start[lane] = static_cast<Word>(lane * bits / kWordBits);
      plan.right[lane] = static_cast<Word>(lane * bits % kWordBits);
    }
    plan.next = plan.start + 1;
    plan.left = kWordBits - plan.right;
  }

  // kLanes fields, the first of which starts on a byte; scratch above the field's width.
  VS_FN Vector unpacked(const UnpackPlan& plan, const unsigned char* fields) {
    const Vector packed = load_vector<Vector>(fields);
    return Unit::right(Unit::fetch(packed, plan.start), plan.right) |
           Unit::left(Unit::fetch(packed, plan.next), plan.left);
  }
};

// Adds whole vectors of fields, the first of which starts on a byte; returns how many
// fields that were.
template <bool kSubtract, class Word>
VS_FN std::size_t add_field_vectors(const unsigned char* fields, std::size_t count, unsigned bits,
                                    Word* sums) {
  typedef UnpackPlan<Word> Plan;
  typedef typename Plan::Vector Vector;
  Plan plan;
  Plan::fill(plan, bits);
  std::size_t done = 0;
  for (; done + Plan::kLanes <= count; done += Plan::kLanes) {
    const Vector unpacked = Plan::unpacked(plan, fields + done / 8 * bits);
    const Vector sum = accumulated<kSubtract>(load_vector<Vector>(sums + done), unpacked);
    __builtin_memcpy(sums + done, &sum, sizeof sum);
  }
  return done;
}

// sums[i] +-= field first + i for i < count.
template <bool kSubtract, class Word>
void add_fields(const unsigned char* fields, std::size_t first, std::size_t count, unsigned bits,
                Word* sums) {
  if (bits == 8 * sizeof(Word))
    return add_words<kSubtract>(fields + first * sizeof(Word), count, sums);
  std::size_t done = 0;
  if constexpr (FieldUnit<Word>::kAvailable) {
    const std::size_t to_byte = (8 - first % 8) % 8;  // every eighth field starts on a byte
    done = to_byte < count ? to_byte : count;
    add_fields_singly<kSubtract>(fields, first, done, bits, sums);
    done += add_field_vectors<kSubtract>(fields + (first + done) / 8 * bits, count - done, bits,
                                         sums + done);
  }
  add_fields_singly<kSubtract>(fields, first + done, count - done, bits, sums + done);
}

// --- several streams at a time -----------------------------------------------------
// A sum is read and written once per kWays streams instead of once per stream, and the streams
// go by one block of coordinates after the other, so that it stays in the first-level cache for
// all of them. More ways would not make it faster, and memory would see more streams than
// its prefetchers follow.

constexpr std::size_t kWays = 4;
constexpr std::size_t kBlockFields = 4096;
// Bytes ahead that a stream is asked for. Prefetchers of the hardware begin anew each time a
// stream is taken up again.
constexpr std::size_t kStreamFetchAhead = 2048;

// Fields that are whole integers. Their sum needs no bit beyond the field's own, so integers
// narrower than the word are added as they are and widened once.
template <class Field, std::size_t kStreams, class Word>
VS_FN void add_integer_streams(const unsigned char* const* fields, std::size_t count, Word* sums) {
  typedef Field Fields __attribute__((vector_size(4 * VS_LANES / sizeof(Word) * sizeof(Field))));
  typedef Word Words __attribute__((vector_size(4 * VS_LANES)));
  constexpr std::size_t kLanes = sizeof(Words) / sizeof(Word);
  std::size_t done = 0;
  for (; done + kLanes <= count; done += kLanes) {
    Fields total{};
    for (std::size_t k = 0; k < kStreams; ++k) {
      const unsigned char* const at = fields[k] + done * sizeof(Field);
      if constexpr (sizeof(Field) < sizeof(Word)) __builtin_prefetch(at + kStreamFetchAhead);
      total += load_vector<Fields>(at);
    }
    const Words sum = load_vector<Words>(sums + done) + __builtin_convertvector(total, Words);
    __builtin_memcpy(sums + done, &sum, sizeof sum);
  }
  for (; done < count; ++done)
    for (std::size_t k = 0; k < kStreams; ++k) {
      Field field;
      __builtin_memcpy(&field, fields[k] + done * sizeof field, sizeof field);
      sums[done] += field;
    }
}

template <std::size_t kStreams, class Word>
VS_FN void add_streams_singly(const unsigned char* const* fields, std::size_t first,
                              std::size_t count, unsigned bits, Word* sums) {
  for (std::size_t i = first; i < count; ++i) {
    Word sum = sums[i];
    for (std::size_t k = 0; k < kStreams; ++k)
      sum += static_cast<Word>(read_field_unmasked(fields[k], i, bits));
    sums[i] = sum;
  }
}

template <std::size_t kStreams, class Word>
VS_FN std::size_t add_stream_vectors(const unsigned char* const* fields, std::size_t count,
                                     unsigned bits, Word* sums) {
  typedef UnpackPlan<Word> Plan;
  typedef typename Plan::Vector Vector;
  Plan plan;
  Plan::fill(plan, bits);
  const unsigned char* at[kStreams];
  for (std::size_t k = 0; k < kStreams; ++k) at[k] = fields[k];
  std::size_t done = 0;
  std::size_t byte = 0;
  for (; done + Plan::kLanes <= count; done += Plan::kLanes, byte += Plan::kLanes / 8 * bits) {
    Vector sum = load_vector<Vector>(sums + done);
    for (std::size_t k = 0; k < kStreams; ++k) {
      __builtin_prefetch(at[k] + byte + kStreamFetchAhead);
      sum += Plan::unpacked(plan, at[k] + byte);
    }
    __builtin_memcpy(sums + done, &sum, sizeof sum);
  }
  return done;
}

// The first `count` fields of kStreams streams.
template <std::size_t kStreams, class Word>
void add_ways(const unsigned char* const* fields, std::size_t count, unsigned bits, Word* sums) {
  if (bits == 8 * sizeof(Word)) return add_integer_streams<Word, kStreams>(fields, count, sums);
  if (bits == 16) return add_integer_streams<std::uint16_t, kStreams>(fields, count, sums);
  if (bits == 8) return add_integer_streams<std::uint8_t, kStreams>(fields, count, sums);
  std::size_t done = 0;
  if constexpr (FieldUnit<Word>::kAvailable)
    done = add_stream_vectors<kStreams>(fields, count, bits, sums);
  add_streams_singly<kStreams>(fields, done, count, bits, sums);
}

template <class Word>
void add_block(const unsigned char* const* fields, std::size_t streams, std::size_t count,
               unsigned bits, Word* sums) {
  for (; streams >= kWays; fields += kWays, streams -= kWays)
    add_ways<kWays>(fields, count, bits, sums);
  if (streams >= 2) {
    add_ways<2>(fields, count, bits, sums);
    fields += 2;
    streams -= 2;
  }
  if (streams == 1) add_ways<1>(fields, count, bits, sums);
}

template <class Word>
void add_packed(const PackedStreams& streams, std::size_t count, Word* sums) {
  constexpr std::size_t kTogether = 32;  // streams whose places fit into a small array
  for (std::size_t first = 0; first < streams.count; first += kTogether) {
    const std::size_t here = streams.count - first < kTogether ? streams.count - first : kTogether;
    for (std::size_t done = 0; done < count; done += kBlockFields) {
      const unsigned char* at[kTogether];
      for (std::size_t k = 0; k < here; ++k)
        at[k] = streams.fields[first + k] + done / 8 * streams.bits;
      const std::size_t fields = count - done < kBlockFields ? count - done : kBlockFields;
      add_block(at, here, fields, streams.bits, sums + done);
    }
  }
}

// --- packing ---------------------------------------------------------------------

// Appends the low bits of words[0..count) to a byte string, any width.
template <class Word>
VS_FN void pack_singly(const Word* words, std::size_t count, unsigned bits, unsigned char* packed) {
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

// Most fields that may reach into one word for packing by vector: 8-bit fields into 32 bits,
// and one more that starts in the word before.
constexpr unsigned kMaxFieldsPerWord = 5;

VS_FN unsigned fields_per_word(unsigned bits, unsigned word_bits) {
  return (word_bits - 1) / bits + 2;
}

// Which field each lane fetches for its word, and how far it is shifted: right for the
// first, which may start in an earlier word, left for all others.
template <class Word>
struct PackPlan {
  typedef typename FieldUnit<Word>::Vector Vector;
  static constexpr unsigned kLanes = sizeof(Vector) / sizeof(Word);
  static constexpr unsigned kWordBits = 8 * sizeof(Word);
  Vector field[kMaxFieldsPerWord];
  Vector shift[kMaxFieldsPerWord];

  VS_FN void fill(PackPlan& plan, unsigned bits) {
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      const unsigned word_start = lane * kWordBits;
      for (unsigned k = 0; k < kMaxFieldsPerWord; ++k) {
        const unsigned field = word_start / bits + k;
        const unsigned start = field * bits;
        const unsigned distance = k == 0 ? word_start - start : start - word_start;
        const bool reaches = field < kLanes && distance < kWordBits;
        plan.field[k][lane] = reaches ? field : 0;
        plan.shift[k][lane] = reaches ? distance : kWordBits;  // shifts to nothing
      }
    }
  }
};

// Packs whole vectors as long as a full register can be stored; returns how many words
// that were.
template <class Word>
VS_FN std::size_t pack_vectors(const Word* words, std::size_t count, unsigned bits,
                               unsigned char* packed) {
  typedef FieldUnit<Word> Unit;
  typedef PackPlan<Word> Plan;
  typedef typename Plan::Vector Vector;
  Plan plan;
  Plan::fill(plan, bits);
  const unsigned fields = fields_per_word(bits, Plan::kWordBits);
  const Vector mask = Vector{} + static_cast<Word>(low_bits(bits));
  const std::size_t room = packed_size(count, bits);
  std::size_t done = 0;
  for (; done + Plan::kLanes <= count && done / 8 * bits + sizeof(Vector) <= room;
       done += Plan::kLanes) {
    const Vector low = load_vector<Vector>(words + done) & mask;
    Vector out = Unit::right(Unit::fetch(low, plan.field[0]), plan.shift[0]);
    for (unsigned k = 1; k < fields; ++k)
      out |= Unit::left(Unit::fetch(low, plan.field[k]), plan.shift[k]);
    // Bytes behind the fields are zeros, which the next store overwrites.
    __builtin_memcpy(packed + done / 8 * bits, &out, sizeof out);
  }
  return done;
}

// Fields that are whole integers are cut off the words.
template <class Field, class Word>
void pack_integers(const Word* words, std::size_t count, unsigned char* packed) {
  typedef Field Stored __attribute__((aligned(1), may_alias));
  auto* const fields = reinterpret_cast<Stored*>(packed);
  for (std::size_t i = 0; i < count; ++i) fields[i] = static_cast<Field>(words[i]);
}

template <class Word>
void pack(const Word* words, std::size_t count, unsigned bits, unsigned char* packed) {
  if (count == 0) return;  // pointers to nothing may be null, also for memcpy
  if (bits == 8 * sizeof(Word)) {
    __builtin_memcpy(packed, words, count * sizeof(Word));
    return;
  }
  if (bits == 16) return pack_integers<std::uint16_t>(words, count, packed);
  if (bits == 8) return pack_integers<std::uint8_t>(words, count, packed);
  std::size_t done = 0;
  if constexpr (FieldUnit<Word>::kAvailable)
    if (fields_per_word(bits, 8 * sizeof(Word)) <= kMaxFieldsPerWord)
      done = pack_vectors(words, count, bits, packed);
  pack_singly(words + done, count - done, bits, packed + done / 8 * bits);
}

}  // namespace
}  // namespace veilsum
