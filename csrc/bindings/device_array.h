// Arrays in device memory: of other libraries, and our own.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <vector>

#include "aggregate/update_set.h"
#include "codec/layout.h"
#include "device/device.h"

namespace veilsum {

namespace py = pybind11;

// C-contiguous values on a device; nothing is still to be written to them.
struct DeviceArray {
  DeviceOwner device;
  Owner owner;
  const std::byte* data;
  std::vector<py::ssize_t> shape;
  DType dtype;
  bool read_only;

  std::size_t elements() const;
  std::size_t bytes() const { return elements() * dtype_size(dtype); }
};

}  // namespace veilsum
