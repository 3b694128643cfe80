#include "bindings/dlpack.h"

#include <pybind11/numpy.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "bindings/dlpack_abi.h"

namespace veilsum {
namespace {

namespace py = pybind11;

// Plain memory, and page-locked memory of CUDA and ROCm: the CPU can read all three.
constexpr std::array<std::int32_t, 3> kHostDevices = {1, 3, 11};

void require_host(const dl::Device& device) {
  for (const std::int32_t host : kHostDevices)
    if (device.type == host) return;
  throw ConfigError(
      "tensor is on DLPack device type " + std::to_string(device.type) + ", not in host memory",
      "copy it to the host first, for example with .cpu()");
}

std::vector<py::ssize_t> strides_in_bytes(const dl::Tensor& tensor, py::ssize_t item_size) {
  std::vector<py::ssize_t> strides(static_cast<std::size_t>(tensor.rank));
  py::ssize_t contiguous = item_size;
  for (std::size_t i = strides.size(); i-- > 0;) {
    strides[i] = tensor.strides != nullptr ? tensor.strides[i] * item_size : contiguous;
    contiguous *= tensor.shape[i];
  }
  return strides;
}

// `owner` keeps the memory alive for as long as the array.
py::tuple share(const dl::Tensor& tensor, bool read_only, const py::capsule& owner) {
  require_host(tensor.device);
  const dl::Kind& kind = dl::kind_of(tensor.dtype);
  const std::vector<py::ssize_t> shape(tensor.shape, tensor.shape + tensor.rank);
  auto* data = static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
  py::array array(py::dtype(kind.numpy), shape, strides_in_bytes(tensor, kind.bits / 8), data,
                  owner);
  if (read_only) array.attr("flags").attr("writeable") = false;
  return py::make_tuple(array, kind.name);
}

}  // namespace

py::tuple import_dlpack(py::object capsule) {
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    const py::capsule owner =
        dl::take<dl::ManagedVersioned>(capsule, "dltensor_versioned", "used_dltensor_versioned");
    const auto* managed = owner.get_pointer<dl::ManagedVersioned>();
    if (managed->major != 1)
      throw ConfigError("DLPack version " + std::to_string(managed->major) + " is not supported",
                        "ask the library for version 1");
    return share(managed->tensor, (managed->flags & dl::kReadOnly) != 0, owner);
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    const py::capsule owner = dl::take<dl::Managed>(capsule, "dltensor", "used_dltensor");
    return share(owner.get_pointer<dl::Managed>()->tensor, false, owner);
  }
  throw py::type_error("capsule must be an unconsumed DLPack capsule");
}

}  // namespace veilsum
