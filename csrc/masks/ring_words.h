// Ring words in memory (uint32 up to 32 bits, uint64 above) and packed on the wire.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace veilsum {

// Throws ConfigError unless 1 <= bits <= word_bits.
void require_ring_bits(unsigned bits, unsigned word_bits);

// The low `bits` of each word, densely packed, zero padded to a whole byte.
std::vector<std::byte> pack_words(std::span<const std::uint32_t> words, unsigned bits);
std::vector<std::byte> pack_words(std::span<const std::uint64_t> words, unsigned bits);

// sums[i] += field i of every string, for sums.size() fields. All strings have
// packed_size(sums.size(), bits) bytes.
using PackedStrings = std::span<const std::span<const std::byte>>;
void add_packed(PackedStrings strings, unsigned bits, std::span<std::uint32_t> sums);
void add_packed(PackedStrings strings, unsigned bits, std::span<std::uint64_t> sums);

// Inverse of pack_words. Throws DecodeError if `packed` has not exactly the bytes of
// words.size() fields, or a padding bit is set.
void unpack_words(std::span<const std::byte> packed, unsigned bits, std::span<std::uint64_t> words);

// Each word mod 2^bits as a signed integer in [-2^(bits-1), 2^(bits-1)).
void center_words(std::span<const std::uint32_t> words, unsigned bits,
                  std::span<std::int64_t> centered);
void center_words(std::span<const std::uint64_t> words, unsigned bits,
                  std::span<std::int64_t> centered);

}  // namespace veilsum
