#include "masks/ring_words.h"

#include <algorithm>
#include <array>
#include <string>

#include "base/error.h"
#include "element/bits.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

const unsigned char* raw(std::span<const std::byte> bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}

// One name for the two word types' kernels.
struct Loops {
  const RingKernels& ring = kernels().ring;
  void add(const PackedStreams& streams, std::size_t count, std::uint32_t* sums) {
    ring.add_packed32(streams, count, sums);
  }
  void add(const PackedStreams& streams, std::size_t count, std::uint64_t* sums) {
    ring.add_packed64(streams, count, sums);
  }
  void pack(std::span<const std::uint32_t> words, unsigned bits, unsigned char* packed) {
    ring.pack32(words.data(), words.size(), bits, packed);
  }
  void pack(std::span<const std::uint64_t> words, unsigned bits, unsigned char* packed) {
    ring.pack64(words.data(), words.size(), bits, packed);
  }
};

template <class Word>
std::vector<std::byte> pack(std::span<const Word> words, unsigned bits) {
  require_ring_bits(bits, 8 * sizeof(Word));
  std::vector<std::byte> packed(packed_size(words.size(), bits));
  Loops().pack(words, bits, reinterpret_cast<unsigned char*>(packed.data()));
  return packed;
}

// How many leading fields, a multiple of 8 so that the next starts on a byte, can be read
// with slack inside `size` bytes.
std::size_t fields_with_slack(std::size_t size, std::size_t count, unsigned bits) {
  if (size < kReadSlack) return 0;
  return std::min(count / 8, (size - kReadSlack) / bits) * 8;
}

template <class Word>
void add(PackedStrings strings, unsigned bits, std::span<Word> sums) {
  if (strings.empty()) return;
  const std::size_t bulk = fields_with_slack(strings.front().size(), sums.size(), bits);
  std::vector<const unsigned char*> places;
  for (const auto& string : strings) places.push_back(raw(string));
  Loops().add({places.data(), places.size(), bits}, bulk, sums.data());
  // The rest, at most kReadSlack + 64 bytes, is read from copies with slack behind them.
  for (const auto& string : strings) {
    std::array<std::byte, 3 * kReadSlack> tail{};
    const auto rest = string.subspan(bulk / 8 * bits, packed_size(sums.size() - bulk, bits));
    std::copy(rest.begin(), rest.end(), tail.begin());
    const unsigned char* const place = raw(tail);
    Loops().add({&place, 1, bits}, sums.size() - bulk, sums.data() + bulk);
  }
}

template <class Word>
void center(std::span<const Word> words, unsigned bits, std::span<std::int64_t> centered) {
  require_ring_bits(bits, 8 * sizeof(Word));
  for (std::size_t i = 0; i < words.size(); ++i) centered[i] = sign_extend(words[i], bits);
}

}  // namespace

void require_ring_bits(unsigned bits, unsigned word_bits) {
  if (bits < 1 || bits > word_bits)
    throw ConfigError("bits must be 1 to " + std::to_string(word_bits) + " for words of " +
                      std::to_string(word_bits) + " bits, got " + std::to_string(bits));
}

std::vector<std::byte> pack_words(std::span<const std::uint32_t> words, unsigned bits) {
  return pack(words, bits);
}

std::vector<std::byte> pack_words(std::span<const std::uint64_t> words, unsigned bits) {
  return pack(words, bits);
}

void add_packed(PackedStrings strings, unsigned bits, std::span<std::uint32_t> sums) {
  add(strings, bits, sums);
}

void add_packed(PackedStrings strings, unsigned bits, std::span<std::uint64_t> sums) {
  add(strings, bits, sums);
}

void unpack_words(std::span<const std::byte> packed, unsigned bits,
                  std::span<std::uint64_t> words) {
  require_ring_bits(bits, kMaxRingBits);
  const std::size_t expected = packed_size(words.size(), bits);
  if (packed.size() != expected)
    throw DecodeError(std::to_string(words.size()) + " words of " + std::to_string(bits) +
                      " bits are " + std::to_string(expected) + " bytes, got " +
                      std::to_string(packed.size()));
  const unsigned used = static_cast<unsigned>(words.size() % 8 * bits % 8);
  if (used != 0 && std::to_integer<unsigned>(packed.back()) >> used != 0)
    throw DecodeError("a padding bit after the last word is set");
  std::fill(words.begin(), words.end(), 0);
  add({&packed, 1}, bits, words);
  for (std::uint64_t& word : words) word &= low_bits(bits);
}

void center_words(std::span<const std::uint32_t> words, unsigned bits,
                  std::span<std::int64_t> centered) {
  center(words, bits, centered);
}

void center_words(std::span<const std::uint64_t> words, unsigned bits,
                  std::span<std::int64_t> centered) {
  center(words, bits, centered);
}

}  // namespace veilsum
