// CRC-32C, in hardware where the level has it. Included by codec_loops.inl.
#pragma once

#include <cstddef>
#include <cstdint>

#include "element/bits.h"

namespace veilsum {
namespace {

#if defined(__SSE4_2__)

VS_FN std::uint32_t crc32c_word(std::uint32_t crc, std::uint64_t word) {
  return static_cast<std::uint32_t>(__builtin_ia32_crc32di(crc, word));
}

VS_FN std::uint32_t crc32c_byte(std::uint32_t crc, unsigned char byte) {
  return __builtin_ia32_crc32qi(crc, byte);
}

#else

// Table k holds the checksums of one byte followed by k zero bytes, so that eight bytes
// are eight look-ups that do not wait for each other.
struct ChecksumTables {
  std::uint32_t of[8][256];
};

constexpr ChecksumTables make_checksum_tables() {
  ChecksumTables tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    // Castagnoli's polynomial 0x1EDC6F41 with its bits reversed.
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
    tables.of[0][byte] = crc;
  }
  for (int k = 1; k < 8; ++k)
    for (int byte = 0; byte < 256; ++byte) {
      const std::uint32_t crc = tables.of[k - 1][byte];
      tables.of[k][byte] = crc >> 8 ^ tables.of[0][crc & 0xFF];
    }
  return tables;
}

constexpr ChecksumTables kChecksumTables = make_checksum_tables();

VS_FN std::uint32_t crc32c_word(std::uint32_t crc, std::uint64_t word) {
  const std::uint64_t mixed = word ^ crc;
  std::uint32_t result = 0;
  for (int i = 0; i < 8; ++i) result ^= kChecksumTables.of[7 - i][mixed >> (8 * i) & 0xFF];
  return result;
}

VS_FN std::uint32_t crc32c_byte(std::uint32_t crc, unsigned char byte) {
  return crc >> 8 ^ kChecksumTables.of[0][(crc ^ byte) & 0xFF];
}

#endif

std::uint32_t crc32c_register(std::uint32_t crc, const unsigned char* bytes, std::size_t size) {
  std::size_t i = 0;
  for (; i + 8 <= size; i += 8) crc = crc32c_word(crc, load_le64(bytes + i));
  for (; i < size; ++i) crc = crc32c_byte(crc, bytes[i]);
  return crc;
}

#if defined(__SSE4_2__)

// The instruction takes three cycles but can start every cycle, so three thirds of a block
// are run side by side. Joining them takes the effect of a third of zero bytes on a checksum,
// which is linear: a table per byte of it.
constexpr std::size_t kThird = 1024;

struct ZeroThird {
  std::uint32_t of[4][256];
};

constexpr ZeroThird make_zero_third() {
  ZeroThird tables{};
  for (int k = 0; k < 4; ++k) {
    std::uint32_t basis[8] = {};
    for (int bit = 0; bit < 8; ++bit) {
      std::uint32_t crc = 1u << (8 * k + bit);
      for (std::size_t shift = 0; shift < 8 * kThird; ++shift)
        crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
      basis[bit] = crc;
    }
    for (int byte = 0; byte < 256; ++byte)
      for (int bit = 0; bit < 8; ++bit)
        if (byte >> bit & 1) tables.of[k][byte] ^= basis[bit];
  }
  return tables;
}

constexpr ZeroThird kZeroThird = make_zero_third();

VS_FN std::uint32_t past_third(std::uint32_t crc) {
  return kZeroThird.of[0][crc & 0xFF] ^ kZeroThird.of[1][crc >> 8 & 0xFF] ^
         kZeroThird.of[2][crc >> 16 & 0xFF] ^ kZeroThird.of[3][crc >> 24];
}

VS_FN std::uint32_t crc32c_thirds(std::uint32_t crc, const unsigned char* bytes) {
  std::uint64_t a = crc, b = 0, c = 0;
  for (std::size_t i = 0; i < kThird; i += 8) {
    a = __builtin_ia32_crc32di(a, load_le64(bytes + i));
    b = __builtin_ia32_crc32di(b, load_le64(bytes + kThird + i));
    c = __builtin_ia32_crc32di(c, load_le64(bytes + 2 * kThird + i));
  }
  const std::uint32_t ab =
      past_third(static_cast<std::uint32_t>(a)) ^ static_cast<std::uint32_t>(b);
  return past_third(ab) ^ static_cast<std::uint32_t>(c);
}

#endif

std::uint32_t crc32c(std::uint32_t crc, const unsigned char* bytes, std::size_t size) {
  crc = ~crc;
#if defined(__SSE4_2__)
  for (; size >= 3 * kThird; bytes += 3 * kThird, size -= 3 * kThird)
    crc = crc32c_thirds(crc, bytes);
#endif
  return ~crc32c_register(crc, bytes, size);
}

}  // namespace
}  // namespace veilsum
