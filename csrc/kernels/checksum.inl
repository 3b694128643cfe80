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

std::uint32_t crc32c(std::uint32_t crc, const unsigned char* bytes, std::size_t size) {
  crc = ~crc;
  std::size_t i = 0;
  for (; i + 8 <= size; i += 8) crc = crc32c_word(crc, load_le64(bytes + i));
  for (; i < size; ++i) crc = crc32c_byte(crc, bytes[i]);
  return ~crc;
}

}  // namespace
}  // namespace veilsum
