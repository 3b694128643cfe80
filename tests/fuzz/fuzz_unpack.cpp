// Fields of every width at any address and of any length: unpacking and adding on every
// instruction set, against one bit after the other. The bytes end where the memory ends.
#include <algorithm>
#include <memory>
#include <vector>

#include "input.h"
#include "kernels/dispatch.h"
#include "masks/ring_words.h"

namespace veilsum::fuzz {
namespace {

// Bytes at an address that is `skew` off, with nothing behind them.
class Placed {
 public:
  Placed(std::span<const std::byte> bytes, std::size_t skew)
      : memory_(std::make_unique<std::byte[]>(skew + bytes.size())),
        bytes_(memory_.get() + skew, bytes.size()) {
    std::ranges::copy(bytes, bytes_.begin());
  }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::unique_ptr<std::byte[]> memory_;
  std::span<std::byte> bytes_;
};

bool bit(std::span<const std::byte> bytes, std::size_t at) {
  return (std::to_integer<unsigned>(bytes[at / 8]) >> at % 8 & 1) != 0;
}

std::vector<std::uint64_t> slow_fields(std::span<const std::byte> bytes, std::size_t count,
                                       unsigned bits) {
  std::vector<std::uint64_t> fields(count);
  for (std::size_t i = 0; i < count; ++i)
    for (unsigned b = 0; b < bits; ++b) fields[i] |= std::uint64_t{bit(bytes, i * bits + b)} << b;
  return fields;
}

bool slow_allows(std::span<const std::byte> bytes, std::size_t count, unsigned bits) {
  if (bytes.size() != (count * bits + 7) / 8) return false;
  for (std::size_t at = count * bits; at < 8 * bytes.size(); ++at)
    if (bit(bytes, at)) return false;
  return true;
}

struct String {
  Placed packed;
  std::vector<std::uint64_t> fields;
};

void compare_unpacked(const String& string, std::size_t count, unsigned bits) {
  const Placed& packed = string.packed;
  std::vector<std::uint64_t> words(count, ~std::uint64_t{0});
  bool accepted = true;
  try {
    unpack_words(packed.bytes(), bits, words);
  } catch (const DecodeError&) {
    accepted = false;
  }
  if (accepted != slow_allows(packed.bytes(), count, bits))
    fail(accepted ? "unpacks what it must refuse" : "refuses what it must unpack");
  if (!accepted) return;
  if (words != string.fields) fail("unpacks other words");
  if (!std::ranges::equal(pack_words(words, bits), packed.bytes())) fail("packs other bytes");
}

template <class Word>
void compare_sums(std::span<const String> strings, std::size_t count, unsigned bits) {
  if (bits > 8 * sizeof(Word)) return;
  std::vector<Word> sums(count, Word{5}), expected(count, Word{5});
  std::vector<std::span<const std::byte>> places;
  for (const String& string : strings) {
    places.push_back(string.packed.bytes());
    for (std::size_t i = 0; i < count; ++i) expected[i] += static_cast<Word>(string.fields[i]);
  }
  add_packed(places, bits, std::span(sums));
  // What lies above the ring's width is nobody's.
  const auto low = static_cast<Word>(~Word{0} >> (8 * sizeof(Word) - bits));
  for (std::size_t i = 0; i < count; ++i)
    if ((sums[i] & low) != (expected[i] & low)) fail("adds other words");
}

void run(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  const unsigned bits = 1 + input.byte() % 64;
  const std::size_t count = input.below(200);
  const std::size_t skew = input.byte() % 16;
  const int surplus = input.byte() % 16 == 1 ? input.byte() % 32 - 16 : 0;
  const std::size_t exact = (count * bits + 7) / 8;

  // The fuzzer's bytes again and again: many fields need no large input.
  std::vector<std::byte> bytes(exact);
  const auto rest = input.rest();
  for (std::size_t i = 0; i < exact && !rest.empty(); ++i) bytes[i] = rest[i % rest.size()];
  std::vector<String> strings;
  for (std::size_t number = 0; number < 3; ++number) {
    strings.push_back({Placed(bytes, (skew + 5 * number) % 16), slow_fields(bytes, count, bits)});
    std::ranges::reverse(bytes);
  }
  bytes.resize(static_cast<std::size_t>(std::max(0, static_cast<int>(exact) + surplus)));
  const bool whole = bytes.size() >= exact;
  const String one{Placed(bytes, skew),
                   whole ? slow_fields(bytes, count, bits) : strings[0].fields};

  for (const KernelTable* table : supported_kernels()) {
    use_isa(table->name);
    compare_unpacked(one, count, bits);
    compare_sums<std::uint32_t>(strings, count, bits);
    compare_sums<std::uint64_t>(strings, count, bits);
  }
}

}  // namespace
}  // namespace veilsum::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  veilsum::fuzz::run(data, size);
  return 0;
}
