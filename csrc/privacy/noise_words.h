// Uniform words from a cipher, for noise that protects.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/secret.h"
#include "masks/masks.h"

namespace veilsum {

// The 64-bit elements of one stream of ChaCha20 under a 32-byte key (docs/protocol.md, "Masks"),
// one after the other. Streams of one key are independent, so each tile of a model takes its
// own and the number of threads cannot show in the noise.
class NoiseWords {
 public:
  // The key must outlive the object, and must not be used for anything else.
  NoiseWords(std::span<const std::byte> key, std::uint32_t stream);

  std::uint64_t next() {
    if (used_ == words_.size()) refill();
    return words_.data()[used_++];
  }

  // Uniform on 0 .. bound - 1, exactly (Lemire 2019). The bound is at least 1.
  std::uint64_t below(std::uint64_t bound) {
    auto product = static_cast<unsigned __int128>(next()) * bound;
    if (static_cast<std::uint64_t>(product) < bound) {
      const std::uint64_t surplus = (0 - bound) % bound;
      while (static_cast<std::uint64_t>(product) < surplus)
        product = static_cast<unsigned __int128>(next()) * bound;
    }
    return static_cast<std::uint64_t>(product >> 64);
  }

 private:
  void refill();

  MaskTerm key_;
  std::uint32_t stream_;
  std::uint64_t made_ = 0;
  WipedBuffer<std::uint64_t> words_;
  MaskScratch keystream_;
  std::size_t used_;
};

}  // namespace veilsum
