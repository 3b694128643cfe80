// The C interface between the core and what runs kernels: cuda/, which another compiler makes and
// which need not be there, or the emulator of tests/emu/. Functions report failure by a nonzero
// status; none throws, and none leaves a sticky error behind.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/bench_launchers.h"
#include "device/decode_launchers.h"
#include "device/encode_launchers.h"
#include "device/gram_launchers.h"
#include "device/mask_launchers.h"
#include "device/mean_launchers.h"
#include "device/order_launchers.h"
#include "device/rotation_launchers.h"
#include "device/step_launchers.h"
#include "device/tensor_launchers.h"

namespace veilsum {

struct DeviceFacts {
  char name[256];
  std::size_t memory_bytes;
  unsigned processors;       // streaming multiprocessors
  std::size_t shared_bytes;  // most shared memory of a block
};

// Devices, memory and streams. Pointers to streams and events are opaque. Calls that take a stream
// happen in its order, and on the device that it was made for.
struct RuntimeApi {
  // Number of usable devices. If there is none, `reason` says why.
  int (*device_count)(char* reason, std::size_t reason_size);
  int (*facts)(int device, DeviceFacts* facts);
  // Makes a device the calling thread's; `previous` gets the one before.
  int (*use_device)(int device, int* previous);

  // Waits for everything that the calling thread's device has to do.
  int (*synchronize_device)();
  // On which device memory is; a failure if it is not a device's.
  int (*device_of)(const void* memory, int* device);

  int (*create_stream)(void** stream);
  int (*destroy_stream)(void* stream);
  int (*synchronize)(void* stream);
  int (*create_event)(void** event);
  int (*destroy_event)(void* event);
  int (*record)(void* event, void* stream);
  // An event that also keeps when it happened, and the time between two of these that have.
  int (*create_timed_event)(void** event);
  int (*elapsed)(void* begin, void* end, float* milliseconds);
  // What is done on the stream from now on waits for the event.
  int (*wait)(void* stream, void* event);
  int (*synchronize_event)(void* event);

  int (*allocate)(void** memory, std::size_t bytes, void* stream);
  int (*release)(void* memory, void* stream);
  // Host memory that copies need not stage.
  int (*allocate_pinned)(void** memory, std::size_t bytes);
  int (*release_pinned)(void* memory);

  int (*to_device)(void* to, const void* from, std::size_t bytes, void* stream);
  int (*to_host)(void* to, const void* from, std::size_t bytes, void* stream);
  int (*copy)(void* to, const void* from, std::size_t bytes, void* stream);  // on one device
  int (*clear)(void* memory, std::size_t bytes, void* stream);

  // Name and explanation of a status. `out_of_memory` is 1 if it says so.
  void (*describe)(int status, char* text, std::size_t size, int* out_of_memory);
};

// Everything one way to run kernels has.
struct DeviceApi {
  const char* name;  // of devices: "cuda" for "cuda:0"
  const RuntimeApi* runtime;
  const DecodeLaunchers* decode;
  const EncodeLaunchers* encode;
  const GramLaunchers* gram;
  const MeanLaunchers* mean;
  const OrderLaunchers* order;
  const RotationLaunchers* rotation;
  const StepLaunchers* step;
  const TensorLaunchers* tensors;
  const MaskLaunchers* masks;
  const BenchLaunchers* bench;
};

}  // namespace veilsum
