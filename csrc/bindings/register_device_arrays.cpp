// Arrays in device memory, in and out: __cuda_array_interface__ version 3 and DLPack.
#include <pybind11/stl.h>

#include <string>
#include <utility>

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

[[noreturn]] void refuse_strides() {
  throw ConfigError("an array on a device must be C-contiguous",
                    "make it so on the device, for example with .contiguous()");
}

void require_contiguous(const std::vector<py::ssize_t>& shape,
                        const std::vector<py::ssize_t>& strides, py::ssize_t expected) {
  for (std::size_t i = shape.size(); i-- > 0;) {
    if (shape[i] != 1 && strides[i] != expected) refuse_strides();
    expected *= shape[i];
  }
}

// An array of another library, whose own stream has been waited for. `object` keeps it alive.
DeviceArray from_interface(const py::object& object, const DeviceApi& api) {
  const auto facts = py::dict(object.attr("__cuda_array_interface__"));
  DeviceArray array{};
  for (const py::handle extent : facts["shape"]) array.shape.push_back(extent.cast<py::ssize_t>());
  const auto dtype = py::dtype::from_args(facts["typestr"]);
  array.dtype =
      dtype_from_name(std::string(1, dtype.kind()) + std::to_string(8 * dtype.itemsize()));
  if (facts.contains("strides") && !facts["strides"].is_none()) {
    std::vector<py::ssize_t> strides;
    for (const py::handle stride : facts["strides"]) strides.push_back(stride.cast<py::ssize_t>());
    require_contiguous(array.shape, strides, dtype.itemsize());
  }
  array.data =
      reinterpret_cast<const std::byte*>(py::tuple(facts["data"])[0].cast<std::uintptr_t>());
  array.owner = own(py::object(object));
  int number = 0;
  std::string reason;
  if (array.bytes() != 0 && api.runtime->device_of(array.data, &number) != 0)
    throw ConfigError("the array's memory is not that of a device of backend '" +
                      std::string(api.name) + "'");
  array.device = open_device(std::string(api.name) + ":" + std::to_string(number));
  if (facts.contains("stream") && !facts["stream"].is_none()) {
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
  const dl::Kind& kind = dl::kind_of(tensor.dtype);
  array.device = std::move(device);
  array.dtype = dtype_from_name(kind.name);
  array.shape.assign(tensor.shape, tensor.shape + tensor.rank);
  if (tensor.strides != nullptr)
    require_contiguous(array.shape,
                       std::vector<py::ssize_t>(tensor.strides, tensor.strides + tensor.rank), 1);
  array.data = static_cast<const std::byte*>(tensor.data) + tensor.byte_offset;
  array.owner = own(std::move(capsule));
  return array;
}

// The producer makes our stream wait for what it has still to write.
DeviceArray from_dlpack(const py::object& object, int number) {
  const DeviceOwner device = open_device("cuda:" + std::to_string(number));
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
    const dl::Tensor& tensor = owner.get_pointer<dl::ManagedVersioned>()->tensor;
    return from_tensor(tensor, device, std::move(owner));
  }
  auto owner = dl::take<dl::Managed>(capsule, "dltensor", "used_dltensor");
  const dl::Tensor& tensor = owner.get_pointer<dl::Managed>()->tensor;
  return from_tensor(tensor, device, std::move(owner));
}

// An object that cannot say where it is, is none of ours: whoever reads it says why.
bool is_on_cuda(const py::object& object) {
  if (!py::hasattr(object, "__dlpack_device__")) return false;
  try {
    return py::tuple(object.attr("__dlpack_device__")())[0].cast<std::int32_t>() == dl::kCuda;
  } catch (const py::error_already_set&) {
    return false;
  }
}

// Also whether an attribute is there that says why it cannot be used, like that of a tensor which
// requires a gradient.
bool is_device_array(const py::object& object) {
  if (py::isinstance<DeviceArray>(object) || is_on_cuda(object)) return true;
  return py::hasattr(object, "__cuda_array_interface__");
}

DeviceArray device_array(const py::object& object, const std::string& kind) {
  if (py::isinstance<DeviceArray>(object)) return object.cast<DeviceArray>();
  if (is_on_cuda(object))
    return from_dlpack(object, py::tuple(object.attr("__dlpack_device__")())[1].cast<int>());
  return from_interface(object, device_api(kind));
}

// --- out ------------------------------------------------------------------------------------

// Memory of ours, and the stream that it is freed on.
struct OwnMemory {
  OwnMemory(const DeviceOwner& on, std::size_t bytes)
      : device(on), stream(*device), buffer(stream, bytes) {}
  const DeviceOwner device;
  const DeviceStream stream;
  const DeviceBuffer buffer;
};

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
  auto memory = std::make_shared<const OwnMemory>(copy.device, copy.bytes());
  const DrainAtExit drain(memory->stream);
  memory->stream.to_device(memory->buffer.as<void>(), values, copy.bytes());
  memory->stream.synchronize();
  copy.data = memory->buffer.as<const std::byte>();
  copy.owner = std::move(memory);
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
  facts["data"] = py::make_tuple(reinterpret_cast<std::uintptr_t>(array.data), false);
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
