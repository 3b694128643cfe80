#include "privacy/noise_words.h"

#include <algorithm>

#include "kernels/dispatch.h"

namespace veilsum {
namespace {

// What the kernel makes at once.
constexpr std::size_t kWords = kRunTiles * kTileElements;

}  // namespace

NoiseWords::NoiseWords(std::span<const std::byte> key, std::uint32_t stream)
    : key_{reinterpret_cast<const unsigned char*>(key.data()), false},
      stream_(stream),
      words_(kWords),
      keystream_(kMaskScratchBytes),
      used_(kWords) {}

void NoiseWords::refill() {
  std::ranges::fill(words_.span(), 0);  // the kernel adds
  add_masks_here(words_.span(), {kernels().ring.chacha20, &key_, 1}, {stream_, kMaxRingBits, made_},
                 keystream_);
  made_ += kWords;
  used_ = 0;
}

}  // namespace veilsum
