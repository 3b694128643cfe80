// Which ways to run kernels this build has.
#pragma once

#include <string>
#include <vector>

#include "device/api.h"

namespace veilsum {

// The one called "cuda" or "emu". Throws DeviceError if this build does not have it, ConfigError
// for any other name.
const DeviceApi& device_api(const std::string& kind);

// Null if this build does not have it.
const DeviceApi* cuda_api();
const DeviceApi* emulator_api();

}  // namespace veilsum
