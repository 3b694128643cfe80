// Packed fields: element j of a stream of `bits`-wide fields is bits
// [j*bits, (j+1)*bits) of one little-endian bit string.
#pragma once

#include <cstddef>
#include <cstdint>

#include "element/annotate.h"

namespace veilsum {

// A field is read through 16 bytes that start at its first byte; a buffer that
// is read with read_field therefore needs this many readable bytes at its end.
inline constexpr std::size_t kFieldSlack = 16;

VS_FN std::uint64_t low_bits(unsigned bits) {
  return bits == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << bits) - 1;
}

// Bytes that `count` fields occupy.
VS_FN std::size_t packed_size(std::size_t count, unsigned bits) {
  // In two parts, because count * bits can pass 2^64 where the result does not.
  return count / 8 * bits + (count % 8 * bits + 7) / 8;
}

// At any address. Hosts are little-endian (kernels/lanes.inl checks); GCC 12 does not
// see through a loop over bytes here, which then costs half of a mask's time.
VS_FN std::uint64_t load_le64(const unsigned char* bytes) {
  std::uint64_t value = 0;
#if defined(__CUDA_ARCH__)
  for (int i = 0; i < 8; ++i) value |= std::uint64_t{bytes[i]} << (8 * i);
#else
  __builtin_memcpy(&value, bytes, sizeof value);
#endif
  return value;
}

VS_FN void store_le64(unsigned char* bytes, std::uint64_t value) {
#if defined(__CUDA_ARCH__)
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<unsigned char>(value >> (8 * i));
#else
  __builtin_memcpy(bytes, &value, sizeof value);
#endif
}

// 64 bits from bit `bit` on, of which the low `bits` are wanted: the bits above them are
// whatever follows in the string. A sum mod 2^bits needs no masking until the very end,
// which saves an operation per element in the hottest loop there is.
VS_FN std::uint64_t read_bits_unmasked(const unsigned char* bytes, std::size_t bit, unsigned bits) {
  const unsigned shift = bit % 8;
  const std::uint64_t low = load_le64(bytes + bit / 8) >> shift;
  if (bits <= 57) return low;
  // Shifted in two steps: a shift by 64 is undefined when shift is 0.
  const std::uint64_t high = bytes[bit / 8 + 8];
  return low | (high << 1 << (63 - shift));
}

VS_FN std::uint64_t read_field_unmasked(const unsigned char* bytes, std::size_t index,
                                        unsigned bits) {
  return read_bits_unmasked(bytes, index * bits, bits);
}

VS_FN std::uint64_t read_field(const unsigned char* bytes, std::size_t index, unsigned bits) {
  return read_field_unmasked(bytes, index, bits) & low_bits(bits);
}

// The same from whole words, of which none is read that has no bit of the field.
VS_FN std::uint64_t read_word_field(const std::uint32_t* words, std::size_t index, unsigned bits) {
  const std::uint32_t* const from = words + index * bits / 32;
  const unsigned shift = index * bits % 32;
  std::uint64_t field = from[0] >> shift;
  if (shift + bits > 32) field |= std::uint64_t{from[1]} << (32 - shift);
  if (shift + bits > 64) field |= std::uint64_t{from[2]} << (64 - shift);
  return field & low_bits(bits);
}

// `value` (of `bits` bits) as a signed integer in [-2^(bits-1), 2^(bits-1)).
VS_FN std::int64_t sign_extend(std::uint64_t value, unsigned bits) {
  const unsigned unused = 64 - bits;
  return static_cast<std::int64_t>(value << unused) >> unused;
}

}  // namespace veilsum
