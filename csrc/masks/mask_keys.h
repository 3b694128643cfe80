// The keys of a mask sum, made ready for their generator.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "base/secret.h"
#include "kernels/ring_kernels.h"

namespace veilsum {

inline constexpr std::size_t kMaskKeyBytes = 32;

enum class MaskGenerator { chacha20, aes256ctr };

// The generator of this name, "chacha20" or "aes256ctr". Throws ConfigError for any other.
MaskGenerator mask_generator(std::string_view name);

// Keys with their signs; the secrets must outlive it.
class MaskKeys {
 public:
  // Throws ConfigError if there is not one sign per key, a key is not 32 bytes or a sign is not
  // +1 or -1.
  MaskKeys(MaskGenerator generator, std::span<const Secret* const> keys,
           std::span<const int> signs);

  MaskGenerator generator() const { return generator_; }
  std::span<const MaskTerm> terms() const { return terms_; }

 private:
  MaskGenerator generator_;
  std::vector<MaskTerm> terms_;
};

// What kernels take, for as long as this lives. The round keys of AES are as secret as the keys
// they come from: they lie in the same kind of memory and are overwritten afterwards.
class ReadyMasks {
 public:
  // No masks at all.
  ReadyMasks() = default;
  explicit ReadyMasks(const MaskKeys& keys) : ReadyMasks(keys.generator(), keys.terms()) {}
  ReadyMasks(MaskGenerator generator, std::span<const MaskTerm> terms);
  ReadyMasks(const ReadyMasks&) = delete;
  ReadyMasks& operator=(const ReadyMasks&) = delete;

  MaskTerms terms() const { return {keystream_, terms_.data(), terms_.size()}; }

 private:
  WriteKeystream keystream_ = nullptr;
  std::vector<MaskTerm> terms_;
  std::vector<Secret> schedules_;
};

}  // namespace veilsum
