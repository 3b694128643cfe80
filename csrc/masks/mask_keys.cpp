#include "masks/mask_keys.h"

#include <algorithm>
#include <string>

#include "base/error.h"
#include "element/aes.h"
#include "kernels/aes_dispatch.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

// A secret holds as many schedules as go into its size.
constexpr std::size_t kSchedulesPerSecret = Secret::kMaxSize / kAesScheduleBytes;

unsigned char* bytes_of(Secret& secret) {
  return reinterpret_cast<unsigned char*>(secret.bytes().data());
}

}  // namespace

MaskGenerator mask_generator(std::string_view name) {
  if (name == "chacha20") return MaskGenerator::chacha20;
  if (name == "aes256ctr") return MaskGenerator::aes256ctr;
  throw ConfigError("generator must be chacha20 or aes256ctr, got '" + std::string(name) + "'");
}

MaskKeys::MaskKeys(MaskGenerator generator, std::span<const Secret* const> keys,
                   std::span<const int> signs)
    : generator_(generator) {
  if (keys.size() != signs.size())
    throw ConfigError("one sign per key is needed: " + std::to_string(keys.size()) + " keys, " +
                      std::to_string(signs.size()) + " signs");
  terms_.reserve(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const auto key = keys[i]->bytes();
    if (key.size() != kMaskKeyBytes)
      throw ConfigError("key " + std::to_string(i) + " must have " + std::to_string(kMaskKeyBytes) +
                        " bytes, got " + std::to_string(key.size()));
    if (signs[i] != 1 && signs[i] != -1)
      throw ConfigError("sign " + std::to_string(i) + " must be +1 or -1, got " +
                        std::to_string(signs[i]));
    terms_.push_back({reinterpret_cast<const unsigned char*>(key.data()), signs[i] < 0});
  }
}

ReadyMasks::ReadyMasks(MaskGenerator generator, std::span<const MaskTerm> terms)
    : terms_(terms.begin(), terms.end()) {
  if (generator == MaskGenerator::chacha20) {
    keystream_ = kernels().ring.chacha20;
    return;
  }
  keystream_ = aes256_keystream();
  for (std::size_t i = 0; i < terms_.size(); ++i) {
    const std::size_t place = i % kSchedulesPerSecret;
    if (place == 0)
      schedules_.emplace_back(std::min(terms_.size() - i, kSchedulesPerSecret) * kAesScheduleBytes);
    unsigned char* const schedule = bytes_of(schedules_.back()) + place * kAesScheduleBytes;
    aes_expand_key(terms_[i].key, schedule);
    terms_[i].key = schedule;
  }
}

}  // namespace veilsum
