// The Secret class.
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/secret.h"
#include "bindings/arrays.h"
#include "bindings/register.h"

namespace veilsum {
namespace {

std::shared_ptr<Secret> share(Secret secret) { return std::make_shared<Secret>(std::move(secret)); }

std::shared_ptr<Secret> zeros(py::object size) {
  return std::make_shared<Secret>(to_integer<std::size_t>("size", size));
}

std::shared_ptr<Secret> from_os(py::object size) {
  return share(Secret::from_os(to_integer<std::size_t>("size", size)));
}

std::shared_ptr<Secret> from_bytes(py::object data) {
  return share(Secret::copy_of(BufferView("data", data).bytes()));
}

// Whether nobody holds the bytes but the expression that they are the argument of. One byte
// or none is an object that everybody is given.
bool is_a_temporary(PyObject* object) {
  if (PyBytes_GET_SIZE(object) < 2) return false;
#if PY_VERSION_HEX >= 0x030E0000
  return PyUnstable_Object_IsUniqueReferencedTemporary(object) != 0;
#else
  return Py_REFCNT(object) == 1;
#endif
}

void require_takeable(PyObject* data) {
  if (!PyBytes_CheckExact(data))
    throw py::type_error(std::string("data must be bytes, got ") + Py_TYPE(data)->tp_name);
  if (!is_a_temporary(data))
    throw ConfigError(
        "somebody else holds the bytes that were to be taken",
        "pass the result of a call, and keep no name, slice, view or container of it");
}

// A copy in locked memory; what it was copied from is overwritten, also if that fails.
std::shared_ptr<Secret> moved_from(std::span<std::byte> bytes) {
  struct Wiping {
    std::span<std::byte> bytes;
    ~Wiping() { wipe(bytes.data(), bytes.size()); }
  } const wiping{bytes};
  return share(Secret::copy_of(bytes));
}

// Written against the C interface: pybind11 would hold a reference of its own to the argument,
// and then no bytes object would look like one that nobody else has.
PyObject* take(PyObject*, PyObject* data) {
  try {
    require_takeable(data);
    auto* const begin = reinterpret_cast<std::byte*>(PyBytes_AS_STRING(data));
    const auto size = static_cast<std::size_t>(PyBytes_GET_SIZE(data));
    return py::cast(moved_from({begin, size})).release().ptr();
  } catch (...) {
    set_python_error();
    return nullptr;
  }
}

void add_take(py::class_<Secret, std::shared_ptr<Secret>>& type) {
  static PyMethodDef definition{"take", &take, METH_O, "take(data, /)\n--\n\n"};
  const auto function = py::reinterpret_steal<py::object>(PyCFunction_New(&definition, nullptr));
  if (!function) throw py::error_already_set();
  type.attr("take") = py::reinterpret_steal<py::object>(PyStaticMethod_New(function.ptr()));
}

std::string representation(const Secret& secret) {
  return "<Secret " + std::to_string(secret.id()) + ": " +
         (secret.wiped() ? "wiped" : std::to_string(secret.size()) + " bytes") + ">";
}

bool equals(const Secret& secret, py::object other) {
  return secret.equals(instance<Secret>("other", other));
}

// Written against the C interface, because pybind11's own buffer support would hide the
// ConfigError of a wiped secret behind a BufferError.
int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  try {
    const auto bytes = py::handle(self).cast<Secret&>().bytes();
    return PyBuffer_FillInfo(view, self, bytes.data(), static_cast<Py_ssize_t>(bytes.size()),
                             /*readonly=*/0, flags);
  } catch (...) {
    set_python_error();
    return -1;
  }
}

void add_buffer_protocol(PyHeapTypeObject* type) {
  type->ht_type.tp_as_buffer = &type->as_buffer;
  type->as_buffer.bf_getbuffer = get_buffer;
}

}  // namespace

void register_secrets(py::module_& module) {
  py::class_<Secret, std::shared_ptr<Secret>> type(module, "Secret", py::is_final(),
                                                   py::custom_type_setup(add_buffer_protocol));
  type.def_static("zeros", &zeros, py::arg("size"))
      .def_static("from_os", &from_os, py::arg("size"))
      .def_static("from_bytes", &from_bytes, py::arg("data"))
      .def_property_readonly("id", &Secret::id)
      .def_property_readonly("wiped", &Secret::wiped)
      .def("wipe", &Secret::wipe_now)
      .def("equals", &equals, py::arg("other"))
      .def("__len__", &Secret::size)
      .def("__repr__", &representation);
  add_take(type);
}

}  // namespace veilsum
