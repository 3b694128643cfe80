// Arrays in memory that is used again.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#include "base/recycled_memory.h"
#include "bindings/tensors.h"

namespace veilsum {

// Tensors from this size on lie in memory that is used again.
inline constexpr std::size_t kRecycledBytes = std::size_t{1} << 20;

// An uninitialised array of the tensor's shape.
inline py::array recycled_array(const Tensor& tensor, DType dtype) {
  const py::dtype values = array_dtype(dtype);
  const std::vector<py::ssize_t> shape(tensor.shape.begin(), tensor.shape.end());
  const std::size_t size = tensor.elements * dtype_size(dtype);
  if (size < kRecycledBytes) return py::array(values, shape);
  auto memory = std::make_unique<RecycledMemory>(size);
  if (memory->data() == nullptr) throw std::bad_alloc();
  std::byte* const data = memory->data();
  const py::capsule owner(memory.get(),
                          [](void* owned) { delete static_cast<RecycledMemory*>(owned); });
  static_cast<void>(memory.release());  // the capsule's from here on
  return py::array(values, shape, data, owner);
}

}  // namespace veilsum
