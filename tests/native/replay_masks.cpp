// Mask streams and packed ring words.
#include "kernels/aes_dispatch.h"
#include "masks/masks.h"
#include "masks/ring_words.h"
#include "replay.h"

namespace veilsum::replay {
namespace {

template <class Word>
std::vector<std::byte> masked(const MaskKeys& keys, const MaskPlace& place, std::size_t count,
                              unsigned threads) {
  std::vector<Word> words(count);
  add_masks(words, keys, place, threads);
  return pack_words(words, place.bits);
}

void require_masks(const MaskKeys& keys, const MaskPlace& place, std::size_t count,
                   Bytes expected) {
  for (const unsigned threads : {1u, 2u}) {
    require_equal("masks in 64-bit words", masked<std::uint64_t>(keys, place, count, threads),
                  expected);
    if (place.bits <= 32)
      require_equal("masks in 32-bit words", masked<std::uint32_t>(keys, place, count, threads),
                    expected);
  }
}

}  // namespace

void replay_masks(Record& record) {
  const MaskGenerator generator = mask_generator(record.text());
  const MaskPlace place = {record.number<std::uint32_t>(), record.number<std::uint32_t>(),
                           record.number<std::uint64_t>()};
  const auto count = record.number<std::uint64_t>();
  std::vector<Secret> secrets;
  std::vector<const Secret*> places;
  for (Bytes left = record.bytes(); !left.empty(); left = left.subspan(kMaskKeyBytes))
    secrets.push_back(Secret::copy_of(left.first(kMaskKeyBytes)));
  for (const Secret& secret : secrets) places.push_back(&secret);
  const std::vector<int> signs = record.numbers<int>();
  const Bytes expected = record.bytes();
  const MaskKeys keys(generator, places, signs);
  require_masks(keys, place, count, expected);
  if (generator != MaskGenerator::aes256ctr) return;
  for (const std::string_view aes : supported_aes()) {
    use_aes(aes);
    require_masks(keys, place, count, expected);
  }
  use_aes("");
}

void replay_packing(Record& record) {
  const auto bits = record.number<std::uint32_t>();
  const std::vector<std::uint64_t> words = record.numbers<std::uint64_t>();
  const Bytes packed = record.bytes();
  require_equal("packed words", pack_words(words, bits), packed);
  std::vector<std::uint64_t> unpacked(words.size());
  unpack_words(packed, bits, unpacked);
  require_equal("words packed again", pack_words(unpacked, bits), packed);
}

}  // namespace veilsum::replay
