#include "bindings/dlpack.h"

#include <pybind11/numpy.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"

namespace veilsum {
namespace {

namespace py = pybind11;

// The stable memory layout of DLPack 0.x and 1.x tensors (dmlc.github.io/dlpack), as far as
// it is used here.
namespace dl {

struct Device {
  std::int32_t type;
  std::int32_t id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t rank;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null means C-contiguous
  std::uint64_t byte_offset;
};

struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct ManagedVersioned {
  std::uint32_t major;
  std::uint32_t minor;
  void* context;
  void (*deleter)(ManagedVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

constexpr std::uint64_t kReadOnly = 1;
// Plain memory, and page-locked memory of CUDA and ROCm: the CPU can read all three.
constexpr std::array<std::int32_t, 3> kHostDevices = {1, 3, 11};

}  // namespace dl

struct Kind {
  std::uint8_t code;  // 0 signed, 1 unsigned, 2 float, 4 bfloat
  std::uint8_t bits;
  const char* name;
  const char* numpy;
};

constexpr std::array<Kind, 12> kKinds = {{{2, 16, "f16", "float16"},
                                          {4, 16, "bf16", "uint16"},
                                          {2, 32, "f32", "float32"},
                                          {2, 64, "f64", "float64"},
                                          {0, 8, "i8", "int8"},
                                          {0, 16, "i16", "int16"},
                                          {0, 32, "i32", "int32"},
                                          {0, 64, "i64", "int64"},
                                          {1, 8, "u8", "uint8"},
                                          {1, 16, "u16", "uint16"},
                                          {1, 32, "u32", "uint32"},
                                          {1, 64, "u64", "uint64"}}};

const Kind& kind_of(const dl::DataType& dtype) {
  for (const Kind& kind : kKinds)
    if (kind.code == dtype.code && kind.bits == dtype.bits && dtype.lanes == 1) return kind;
  throw ConfigError("a layout cannot hold DLPack dtype code " + std::to_string(dtype.code) +
                        " of " + std::to_string(dtype.bits) + " bits",
                    "convert the tensor to one of f16 bf16 f32 f64 i8 i16 i32 i64 u8 u16 u32 u64");
}

void require_host(const dl::Device& device) {
  for (const std::int32_t host : dl::kHostDevices)
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
  const Kind& kind = kind_of(tensor.dtype);
  const std::vector<py::ssize_t> shape(tensor.shape, tensor.shape + tensor.rank);
  auto* data = static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
  py::array array(py::dtype(kind.numpy), shape, strides_in_bytes(tensor, kind.bits / 8), data,
                  owner);
  if (read_only) array.attr("flags").attr("writeable") = false;
  return py::make_tuple(array, kind.name);
}

// Takes the tensor out of its capsule. From the renaming on it is ours to delete, also if
// what follows throws.
template <class T>
py::capsule take(const py::object& capsule, const char* name, const char* used_name) {
  auto* managed = static_cast<T*>(PyCapsule_GetPointer(capsule.ptr(), name));
  if (managed == nullptr || PyCapsule_SetName(capsule.ptr(), used_name) != 0)
    throw py::error_already_set();
  return py::capsule(managed, [](void* pointer) {
    auto* owned = static_cast<T*>(pointer);
    if (owned->deleter != nullptr) owned->deleter(owned);
  });
}

}  // namespace

py::tuple import_dlpack(py::object capsule) {
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    const py::capsule owner =
        take<dl::ManagedVersioned>(capsule, "dltensor_versioned", "used_dltensor_versioned");
    const auto* managed = owner.get_pointer<dl::ManagedVersioned>();
    if (managed->major != 1)
      throw ConfigError("DLPack version " + std::to_string(managed->major) + " is not supported",
                        "ask the library for version 1");
    return share(managed->tensor, (managed->flags & dl::kReadOnly) != 0, owner);
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    const py::capsule owner = take<dl::Managed>(capsule, "dltensor", "used_dltensor");
    return share(owner.get_pointer<dl::Managed>()->tensor, false, owner);
  }
  throw py::type_error("capsule must be an unconsumed DLPack capsule");
}

}  // namespace veilsum
