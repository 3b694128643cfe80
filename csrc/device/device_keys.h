// Mask keys in device memory.
#pragma once

#include <cstddef>
#include <span>

#include "device/device.h"
#include "device/secret_memory.h"
#include "masks/mask_keys.h"

namespace veilsum {

// Keys as kernels take them, the added ones first; cleared when this goes, also from the host
// memory that they came through.
class DeviceKeys {
 public:
  DeviceKeys(const Device& device, MaskGenerator generator, std::span<const MaskTerm> terms);

  bool aes() const { return aes_; }
  const void* place() const { return keys_.as<void>(); }  // DeviceAesKey, or DeviceChaChaKey
  std::size_t added() const { return added_; }
  std::size_t subtracted() const { return subtracted_; }

 private:
  std::size_t key_bytes() const;
  void write_key(const unsigned char* key, std::size_t number);

  const bool aes_;
  const DeviceStream stream_;
  const WipedPinnedBuffer host_;
  const DrainAtExit drain_;
  const ClearedDeviceBuffer keys_;
  std::size_t added_ = 0;
  std::size_t subtracted_ = 0;
};

}  // namespace veilsum
