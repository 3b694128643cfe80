// One array per tensor of a layout.
#pragma once

#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "codec/gather.h"
#include "codec/layout.h"

namespace veilsum {

// The NumPy dtype in which a tensor's values arrive. NumPy has no bfloat16, so that comes
// as bit patterns; all other names start with NumPy's letter for the kind.
inline py::dtype array_dtype(DType dtype) {
  const char kind = dtype == DType::bf16 ? 'u' : dtype_name(dtype).front();
  return py::dtype(kind + std::to_string(dtype_size(dtype)));
}

// Refuses an array that is not a tensor's values in `dtype`.
inline py::array tensor_array(const Tensor& tensor, DType dtype, py::handle item) {
  const std::string name = "arrays['" + tensor.name + "']";
  const py::array array = as_array(name.c_str(), item);
  const py::dtype expected = array_dtype(dtype);
  if (!array.dtype().equal(expected))
    throw py::type_error(name + " must have dtype " + py::str(expected).cast<std::string>() +
                         ", got " + py::str(array.dtype()).cast<std::string>());
  if ((array.flags() & py::array::c_style) == 0)
    throw py::type_error(name + " must be C-contiguous");
  if (static_cast<std::uint64_t>(array.size()) != tensor.elements)
    throw ConfigError(name + " must have " + std::to_string(tensor.elements) + " elements, got " +
                      std::to_string(array.size()));
  return array;
}

// The values of a layout's tensors. Holds references to the arrays: made and destroyed
// with the GIL held, used without it.
class TensorArrays {
 public:
  TensorArrays(const Layout& layout, py::handle arrays) {
    for (const py::handle item : py::iter(arrays)) {
      if (pointers_.size() == layout.tensors().size())
        throw ConfigError("the layout has " + std::to_string(layout.tensors().size()) +
                          " tensors, got more arrays");
      add(layout.tensors()[pointers_.size()], item);
    }
    if (pointers_.size() < layout.tensors().size())
      throw ConfigError("the layout has " + std::to_string(layout.tensors().size()) +
                        " tensors, got " + std::to_string(pointers_.size()) + " arrays");
  }

  TensorData pointers() const { return pointers_; }

 private:
  void add(const Tensor& tensor, py::handle item) {
    const py::array array = tensor_array(tensor, tensor.dtype, item);
    owners_.push_back(array);
    pointers_.push_back(static_cast<const std::byte*>(array.data()));
  }

  std::vector<py::array> owners_;
  std::vector<const std::byte*> pointers_;
};

}  // namespace veilsum
