// Model layouts, and arrays of other libraries.
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/dlpack.h"
#include "bindings/register.h"
#include "codec/layout.h"

namespace veilsum {
namespace {

std::string to_name(py::handle name) {
  if (!py::isinstance<py::str>(name))
    throw py::type_error("a tensor's name must be a str, got " + type_name(name));
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(name.ptr(), &size);
  if (text == nullptr) {
    PyErr_Clear();  // a lone surrogate
    throw ConfigError("a tensor's name cannot be written as UTF-8");
  }
  return {text, static_cast<std::size_t>(size)};
}

Tensor to_tensor(py::handle item) {
  const auto fields = py::reinterpret_borrow<py::sequence>(item);
  if (!py::isinstance<py::sequence>(item) || fields.size() != 3)
    throw py::type_error("a tensor must be (name, dtype, shape)");
  const py::object dtype = fields[1];
  if (!py::isinstance<py::str>(dtype))
    throw py::type_error("a tensor's dtype must be a str, got " + type_name(dtype));
  Tensor tensor{to_name(py::object(fields[0])), dtype_from_name(dtype.cast<std::string>()), {}, 0};
  for (const py::handle dimension : py::iter(py::object(fields[2])))
    tensor.shape.push_back(to_integer<std::uint64_t>("dimension", dimension));
  return tensor;
}

Layout make_layout(py::object tensors) {
  std::vector<Tensor> list;
  for (const py::handle item : py::iter(tensors)) list.push_back(to_tensor(item));
  return Layout(std::move(list));
}

py::bytes layout_bytes(const Layout& layout) {
  const auto bytes = layout.canonical_bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

py::tuple layout_tensors(const Layout& layout) {
  py::tuple tensors(layout.tensors().size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& tensor = layout.tensors()[i];
    tensors[i] = py::make_tuple(tensor.name, std::string(dtype_name(tensor.dtype)),
                                py::tuple(py::cast(tensor.shape)));
  }
  return tensors;
}

py::tuple layout_offsets(const Layout& layout, py::object group) {
  const auto& spans = layout.group(to_integer<int>("group", group));
  py::tuple offsets(spans.size());
  for (std::size_t i = 0; i < spans.size(); ++i)
    offsets[i] = py::make_tuple(spans[i].tensor, spans[i].first, spans[i].elements);
  return offsets;
}

}  // namespace

void register_layout(py::module_& module) {
  py::class_<Layout>(module, "Layout", py::is_final())
      .def(py::init(&make_layout), py::arg("tensors"))
      .def_static(
          "from_bytes",
          [](py::object data) { return Layout::parse(BufferView("data", data).bytes()); },
          py::arg("data"))
      .def("to_bytes", &layout_bytes)
      .def_property_readonly("tensors", &layout_tensors)
      .def_property_readonly("size", &Layout::size)
      .def(
          "group_size",
          [](const Layout& layout, py::object group) {
            return layout.group_size(to_integer<int>("group", group));
          },
          py::arg("group"))
      .def("offsets", &layout_offsets, py::arg("group"));
  module.def("import_dlpack", &import_dlpack, py::arg("capsule"));
}

}  // namespace veilsum
