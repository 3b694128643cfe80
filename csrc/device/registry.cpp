#include "device/registry.h"

#include "base/error.h"

namespace veilsum {

#if defined(VEILSUM_WITH_CUDA)
extern const DeviceApi vs_cuda_api;
const DeviceApi* cuda_api() { return &vs_cuda_api; }
#else
const DeviceApi* cuda_api() { return nullptr; }
#endif

#if defined(VEILSUM_WITH_EMULATOR)
extern const DeviceApi vs_emu_api;
const DeviceApi* emulator_api() { return &vs_emu_api; }
#else
const DeviceApi* emulator_api() { return nullptr; }
#endif

const DeviceApi& device_api(const std::string& kind) {
  if (kind == "cuda") {
    if (cuda_api() != nullptr) return *cuda_api();
    throw DeviceError("this build has no CUDA backend",
                      "install nvcc and build with VEILSUM_CUDA=ON");
  }
  if (kind == "emu") {
    if (emulator_api() != nullptr) return *emulator_api();
    throw DeviceError("this build has no emulator", "build with VEILSUM_EMULATOR=ON");
  }
  throw ConfigError("unknown backend '" + kind + "'", "known: cpu, cuda, cuda:N, emu, emu:N");
}

}  // namespace veilsum
