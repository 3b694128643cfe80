// The Secret class.
#include <memory>
#include <string>
#include <utility>

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
  py::class_<Secret, std::shared_ptr<Secret>>(module, "Secret", py::is_final(),
                                              py::custom_type_setup(add_buffer_protocol))
      .def_static("zeros", &zeros, py::arg("size"))
      .def_static("from_os", &from_os, py::arg("size"))
      .def_static("from_bytes", &from_bytes, py::arg("data"))
      .def_property_readonly("id", &Secret::id)
      .def_property_readonly("wiped", &Secret::wiped)
      .def("wipe", &Secret::wipe_now)
      .def("equals", &equals, py::arg("other"))
      .def("__len__", &Secret::size)
      .def("__repr__", &representation);
}

}  // namespace veilsum
