// Arrays in device memory, in and out: __cuda_array_interface__ version 3 and DLPack.
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/adding.h"
#include "bindings/arrays.h"
#include "bindings/device_array.h"
#include "bindings/dlpack_abi.h"
#include "bindings/register.h"
#include "bindings/tensors.h"
#include "device/registry.h"

namespace veilsum {

std::size_t DeviceArray::elements() const {
  std::size_t count = 1;
  for (const py::ssize_t extent : shape) count *= static_cast<std::size_t>(extent);
  return count;
}

namespace {

// --- in ------------------------------------------------------------------------------

// Everything that foreign objects say of themselves is checked here, once. What cannot be checked
// is whether memory reaches as far as they say.

// Sizes of all dimensions, whose product in bytes is a number.
std::vector<py::ssize_t> checked_shape(const std::vector<std::int64_t>& extents, DType dtype) {
  std::size_t bytes = dtype_size(dtype);
  bool empty = false;
  bool fits = true;
  for (const std::int64_t extent : extents) {
    empty |= extent == 0;
    fits &= extent >= 0 && (extent == 0 || !__builtin_mul_overflow(
                                               bytes, static_cast<std::size_t>(extent), &bytes));
  }
  const bool negative = std::any_of(extents.begin(), extents.end(), [](auto e) { return e < 0; });
  if (negative || (!fits && !empty) || (!empty && bytes > std::size_t{PTRDIFF_MAX}))
    throw ConfigError("an array cannot have the shape that it says it has");
  return {extents.begin(), extents.end()};
}

// `expected`: between neighbours of the last dimension. Of an empty array strides say nothing, nor
// of a dimension of one.
void require_contiguous(const DeviceArray& array, const std::vector<std::int64_t>& strides,
                        std::int64_t expected) {
  if (strides.size() != array.shape.size())
    throw ConfigError("an array has " + std::to_string(array.shape.size()) + " dimensions and " +
                      std::to_string(strides.size()) + " strides");
  if (array.elements() == 0) return;
  for (std::size_t i = strides.size(); i-- > 0;) {
    if (array.shape[i] != 1 && strides[i] != expected)
      throw ConfigError("an array on a device must be C-contiguous",
                        "make it so on the device, for example with .contiguous()");
    expected *= array.shape[i];
  }
}

// The number of the device that holds the array's values. Kernels fault on what is not a multiple
// of its values' size, and a fault costs the whole process its device.
int require_place(const DeviceArray& array, const DeviceApi& api) {
  if (array.elements() == 0) return 0;
  int number = 0;
  if (api.runtime->device_of(array.data, &number) != 0)
    throw ConfigError("the array's memory is not that of a device of backend '" +
                      std::string(api.name) + "'");
  if (reinterpret_cast<std::uintptr_t>(array.data) % dtype_size(array.dtype) != 0)
    throw ConfigError("the array's values are not aligned to their size",
                      "copy the array on its device");
  return number;
}

std::vector<std::int64_t> integers_of(const py::handle& sequence) {
  std::vector<std::int64_t> integers;
  for (const py::handle item : py::iter(sequence)) integers.push_back(item.cast<std::int64_t>());
  return integers;
}

bool has(const py::dict& facts, const char* key) {
  return facts.contains(key) && !facts[key].is_none();
}

DType interface_dtype(const py::dict& facts) {
  const auto dtype = py::dtype::from_args(facts["typestr"]);
  if (!dtype.attr("isnative").cast<bool>())
    throw ConfigError("an array on a device must have the byte order of this machine");
  return dtype_from_name(std::string(1, dtype.kind()) + std::to_string(8 * dtype.itemsize()));
}

// An array of another library, whose own stream has been waited for. `object` keeps it alive.
DeviceArray from_interface(const py::object& object, const DeviceApi& api) {
  const auto facts = py::dict(object.attr("__cuda_array_interface__"));
  DeviceArray array{};
  array.dtype = interface_dtype(facts);
  array.shape = checked_shape(integers_of(facts["shape"]), array.dtype);
  if (has(facts, "mask"))
    throw ConfigError("an array with a mask has values that are none", "fill them first");
  if (has(facts, "strides"))
    require_contiguous(array, integers_of(facts["strides"]),
                       static_cast<std::int64_t>(dtype_size(array.dtype)));
  const py::tuple place(facts["data"]);
  array.data = reinterpret_cast<const std::byte*>(place[0].cast<std::uintptr_t>());
  array.read_only = place[1].cast<bool>();
  array.owner = own(py::object(object));
  array.device =
      open_device(std::string(api.name) + ":" + std::to_string(require_place(array, api)));
  if (has(facts, "stream")) {
    const OnDevice on(*array.device);
    const DeviceStream stream(*array.device);
    stream.wait_for(reinterpret_cast<void*>(facts["stream"].cast<std::uintptr_t>()));
    const py::gil_scoped_release release;
    stream.synchronize();
  }
  return array;
}

DeviceArray from_tensor(const dl::Tensor& tensor, DeviceOwner device, py::capsule capsule) {
  DeviceArray array{};
  array.owner = own(std::move(capsule));
  array.device = std::move(device);
  array.dtype = dtype_from_name(dl::kind_of(tensor.dtype).name);
  if (tensor.rank < 0) throw ConfigError("an array cannot have a negative number of dimensions");
  array.shape = checked_shape({tensor.shape, tensor.shape + tensor.rank}, array.dtype);
  if (tensor.strides != nullptr)
    require_contiguous(array, {tensor.strides, tensor.strides + tensor.rank}, 1);
  array.data = static_cast<const std::byte*>(tensor.data) + tensor.byte_offset;
  if (array.elements() != 0 && require_place(array, array.device->api()) != array.device->number())
    throw ConfigError("the array is not on the device that it says it is on");
  return array;
}

// Where an array says that it is, and on which number of device.
struct DlpackDevice {
  std::int32_t type;
  int number;
};

// An object that cannot say where it is, is none of ours: whoever reads it says why.
std::optional<DlpackDevice> dlpack_device(const py::object& object) {
  if (!py::hasattr(object, "__dlpack_device__")) return std::nullopt;
  try {
    const py::tuple found(object.attr("__dlpack_device__")());
    const DlpackDevice device = {found[0].cast<std::int32_t>(), found[1].cast<int>()};
    if (device.type == dl::kCuda || device.type == dl::kExtension) return device;
  } catch (const py::builtin_exception&) {
  } catch (const py::error_already_set&) {
  }
  return std::nullopt;
}

// The producer makes our stream wait for what it has still to write.
DeviceArray from_dlpack(const py::object& object, const DlpackDevice& where) {
  const std::string kind = where.type == dl::kCuda ? "cuda:" : "emu:";
  const DeviceOwner device = open_device(kind + std::to_string(where.number));
  const OnDevice on(*device);
  const DeviceStream stream(*device);
  const auto capsule = py::object(object.attr("__dlpack__")(
      py::arg("stream") = reinterpret_cast<std::uintptr_t>(stream.handle())));
  {
    const py::gil_scoped_release release;
    stream.synchronize();
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    auto owner =
        dl::take<dl::ManagedVersioned>(capsule, "dltensor_versioned", "used_dltensor_versioned");
    const auto* managed = owner.get_pointer<dl::ManagedVersioned>();
    if (managed->major != 1)
      throw ConfigError("DLPack version " + std::to_string(managed->major) + " is not supported",
                        "ask the library for version 1");
    DeviceArray array = from_tensor(managed->tensor, device, std::move(owner));
    array.read_only = (managed->flags & dl::kReadOnly) != 0;
    return array;
  }
  auto owner = dl::take<dl::Managed>(capsule, "dltensor", "used_dltensor");
  const dl::Tensor& tensor = owner.get_pointer<dl::Managed>()->tensor;
  return from_tensor(tensor, device, std::move(owner));
}

// Also whether an attribute is there that says why it cannot be used, like that of a tensor which
// requires a gradient.
bool is_device_array(const py::object& object) {
  if (py::isinstance<DeviceArray>(object) || dlpack_device(object)) return true;
  return py::hasattr(object, "__cuda_array_interface__");
}

DeviceArray device_array(const py::object& object, const std::string& kind) {
  if (py::isinstance<DeviceArray>(object)) return object.cast<DeviceArray>();
  if (const auto where = dlpack_device(object)) return from_dlpack(object, *where);
  return from_interface(object, device_api(kind));
}

// --- out ------------------------------------------------------------------------------------

// Memory of ours, and the stream that it is freed on.
struct OwnMemory {
  OwnMemory(const DeviceOwner& on, std::size_t bytes)
      : device(on), stream(*device), buffer(stream, bytes) {}
  // A library that let go of it may still have kernels under way that read it, on its own streams.
  ~OwnMemory() { device->finish_everything(); }
  OwnMemory(const OwnMemory&) = delete;
  OwnMemory& operator=(const OwnMemory&) = delete;

  const DeviceOwner device;
  const DeviceStream stream;
  const DeviceBuffer buffer;
};

// Takes the memory of an array that has everything else.
std::shared_ptr<const OwnMemory> take_memory(DeviceArray& array) {
  const OnDevice on(*array.device);
  auto memory = std::make_shared<const OwnMemory>(array.device, array.bytes());
  array.data = memory->buffer.as<const std::byte>();
  array.owner = memory;
  return memory;
}

DeviceArray empty_on_device(const std::string& backend, const std::vector<std::int64_t>& shape,
                            const std::string& dtype) {
  DeviceArray array{};
  array.device = open_device(backend);
  array.dtype = dtype_from_name(dtype);
  array.shape = checked_shape(shape, array.dtype);
  const py::gil_scoped_release release;
  const auto memory = take_memory(array);
  memory->stream.synchronize();
  return array;
}

DeviceArray copy_to_device(const std::string& backend, const py::array& array,
                           const std::string& dtype) {
  DeviceArray copy{};
  copy.device = open_device(backend);
  copy.shape.assign(array.shape(), array.shape() + array.ndim());
  copy.dtype = dtype_from_name(dtype);
  if ((array.flags() & py::array::c_style) == 0 ||
      static_cast<std::size_t>(array.nbytes()) != copy.bytes())
    throw py::type_error("array must be C-contiguous values of dtype " + dtype);
  const void* const values = array.data();
  const py::gil_scoped_release release;
  const OnDevice on(*copy.device);
  const auto memory = take_memory(copy);
  const DrainAtExit drain(memory->stream);
  memory->stream.to_device(memory->buffer.as<void>(), values, copy.bytes());
  memory->stream.synchronize();
  return copy;
}

py::array to_host(const DeviceArray& array) {
  py::array copy(array_dtype(array.dtype), array.shape);
  void* const values = copy.mutable_data();
  const py::gil_scoped_release release;
  const OnDevice on(*array.device);
  const DeviceStream stream(*array.device);
  const DrainAtExit drain(stream);
  stream.to_host(values, array.data, array.bytes());
  stream.synchronize();
  return copy;
}

// For tests of what happens when somebody writes to an array that was lent.
void overwrite(const DeviceArray& array, const DeviceArray& values) {
  if (array.bytes() != values.bytes()) throw ConfigError("the arrays have different sizes");
  std::vector<std::byte> bytes(values.bytes());
  const OnDevice on(*array.device);
  const DeviceStream stream(*array.device);
  const DrainAtExit drain(stream);
  stream.to_host(bytes.data(), values.data, bytes.size());
  stream.synchronize();
  stream.to_device(const_cast<std::byte*>(array.data), bytes.data(), bytes.size());
  stream.synchronize();
}

py::dict interface(const DeviceArray& array) {
  if (array.dtype == DType::bf16)
    throw py::attribute_error("__cuda_array_interface__ has no bfloat16; use DLPack");
  py::dict facts;
  facts["version"] = 3;
  facts["shape"] = py::tuple(py::cast(array.shape));
  facts["typestr"] = array_dtype(array.dtype).attr("str");
  facts["data"] = py::make_tuple(reinterpret_cast<std::uintptr_t>(array.data), array.read_only);
  facts["strides"] = py::none();
  facts["stream"] = py::none();  // nothing is still to be written
  return facts;
}

std::int32_t device_type(const DeviceArray& array) {
  return array.device->name().starts_with("cuda:") ? dl::kCuda : dl::kExtension;
}

// What a capsule points to, for as long as somebody uses it.
struct Exported {
  dl::Managed managed{};
  std::vector<std::int64_t> shape;
  Owner owner;
};

py::capsule export_dlpack(const DeviceArray& array, const py::kwargs&) {
  auto* const exported = new Exported;
  exported->owner = array.owner;
  exported->shape.assign(array.shape.begin(), array.shape.end());
  const dl::Kind& kind = dl::kind_named(dtype_name(array.dtype));
  exported->managed.tensor = {const_cast<std::byte*>(array.data),
                              {device_type(array), array.device->number()},
                              static_cast<std::int32_t>(array.shape.size()),
                              {kind.code, kind.bits, 1},
                              exported->shape.data(),
                              nullptr,
                              0};
  exported->managed.context = exported;
  exported->managed.deleter = [](dl::Managed* managed) {
    delete static_cast<Exported*>(managed->context);
  };
  PyObject* const capsule = PyCapsule_New(&exported->managed, "dltensor", [](PyObject* unused) {
    if (!PyCapsule_IsValid(unused, "dltensor")) return;  // somebody took it
    auto* managed = static_cast<dl::Managed*>(PyCapsule_GetPointer(unused, "dltensor"));
    managed->deleter(managed);
  });
  if (capsule == nullptr) {
    delete exported;
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::capsule>(capsule);
}

}  // namespace

void register_device_arrays(py::module_& module) {
  py::class_<DeviceArray>(module, "DeviceArray", py::is_final())
      .def(py::init(&copy_to_device), py::arg("backend"), py::arg("array"), py::arg("dtype"))
      .def_static("empty", &empty_on_device, py::arg("backend"), py::arg("shape"), py::arg("dtype"))
      .def_property_readonly("device",
                             [](const DeviceArray& array) { return array.device->name(); })
      .def_property_readonly(
          "shape", [](const DeviceArray& array) { return py::tuple(py::cast(array.shape)); })
      .def_property_readonly(
          "dtype", [](const DeviceArray& array) { return std::string(dtype_name(array.dtype)); })
      .def_property_readonly("nbytes", &DeviceArray::bytes)
      .def_property_readonly("__cuda_array_interface__", &interface)
      .def("__dlpack_device__",
           [](const DeviceArray& array) {
             return py::make_tuple(device_type(array), array.device->number());
           })
      .def("__dlpack__", &export_dlpack)
      .def("to_host", &to_host);
  module.def("is_device_array", &is_device_array, py::arg("object"));
  module.def("device_array", &device_array, py::arg("object"), py::kw_only(),
             py::arg("kind") = "cuda");
  module.def("overwrite_device_array", &overwrite, py::arg("array"), py::arg("values"));
}

}  // namespace veilsum
