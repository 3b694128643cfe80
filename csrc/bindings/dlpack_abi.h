// The stable memory layout of DLPack 0.x and 1.x tensors (dmlc.github.io/dlpack), as far as it is
// used here.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"

namespace veilsum::dl {

namespace py = pybind11;

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

// Types of devices.
constexpr std::int32_t kCuda = 2;
constexpr std::int32_t kExtension = 12;  // here: emulated devices

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

inline const Kind& kind_of(const DataType& dtype) {
  for (const Kind& kind : kKinds)
    if (kind.code == dtype.code && kind.bits == dtype.bits && dtype.lanes == 1) return kind;
  throw ConfigError("a layout cannot hold DLPack dtype code " + std::to_string(dtype.code) +
                        " of " + std::to_string(dtype.bits) + " bits",
                    "convert the tensor to one of f16 bf16 f32 f64 i8 i16 i32 i64 u8 u16 u32 u64");
}

inline const Kind& kind_named(std::string_view name) {
  for (const Kind& kind : kKinds)
    if (kind.name == name) return kind;
  throw ConfigError("DLPack has no dtype " + std::string(name));
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

}  // namespace veilsum::dl
