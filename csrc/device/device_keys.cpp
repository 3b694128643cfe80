#include "device/device_keys.h"

#include "device/mask_launchers.h"
#include "element/aes.h"

namespace veilsum {

DeviceKeys::DeviceKeys(const Device& device, MaskGenerator generator,
                       std::span<const MaskTerm> terms)
    : aes_(generator == MaskGenerator::aes256ctr),
      stream_(device),
      host_(device, terms.size() * key_bytes()),
      drain_(stream_),
      keys_(stream_, terms.size() * key_bytes()) {
  std::size_t number = 0;
  for (const bool subtract : {false, true})
    for (const MaskTerm& term : terms)
      if (term.subtract == subtract) write_key(term.key, number++);
  for (const MaskTerm& term : terms) ++(term.subtract ? subtracted_ : added_);
  stream_.to_device(keys_.as<void>(), host_.as<void>(), terms.size() * key_bytes());
  stream_.synchronize();
  host_.wipe_now();
}

std::size_t DeviceKeys::key_bytes() const {
  return aes_ ? sizeof(DeviceAesKey) : sizeof(DeviceChaChaKey);
}

void DeviceKeys::write_key(const unsigned char* key, std::size_t number) {
  if (!aes_) {
    host_.as<DeviceChaChaKey>()[number] = load_key(key);
    return;
  }
  WipedBuffer<unsigned char> schedule(kAesScheduleBytes);
  aes_expand_key(key, schedule.data());
  aes_slice_schedule(schedule.data(), host_.as<DeviceAesKey>()[number]);
}

}  // namespace veilsum
