// Python arguments -> checked C++ views. Nothing is converted silently: an array that
// would have to be copied is refused, because writes to the copy would be lost.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "base/error.h"

namespace veilsum {

namespace py = pybind11;

inline std::string type_name(py::handle object) {
  return py::str(py::type::handle_of(object).attr("__name__")).cast<std::string>();
}

inline py::array as_array(const char* name, py::handle object) {
  if (!py::isinstance<py::array>(object))
    throw py::type_error(std::string(name) + " must be a NumPy array, got " + type_name(object));
  return py::reinterpret_borrow<py::array>(object);
}

template <class T>
bool has_dtype(const py::array& array) {
  return array.dtype().equal(py::dtype::of<std::remove_const_t<T>>());
}

// The array's elements in memory order. `T` const means read-only. The caller keeps the
// array alive.
template <class T>
std::span<T> flat_span(const char* name, py::handle object) {
  const py::array array = as_array(name, object);
  if (!has_dtype<T>(array))
    throw py::type_error(std::string(name) + " must have dtype " +
                         py::str(py::dtype::of<std::remove_const_t<T>>()).cast<std::string>() +
                         ", got " + py::str(array.dtype()).cast<std::string>());
  if ((array.flags() & py::array::c_style) == 0)
    throw py::type_error(std::string(name) + " must be C-contiguous");
  if constexpr (!std::is_const_v<T>) {
    if (!array.writeable()) throw py::type_error(std::string(name) + " must be writable");
    return {static_cast<T*>(array.request(true).ptr), static_cast<std::size_t>(array.size())};
  } else {
    return {static_cast<T*>(array.data()), static_cast<std::size_t>(array.size())};
  }
}

// Calls `use` with the span of an array of ring words, whichever width they have.
// `kConst` decides whether the span is read-only.
template <bool kConst, class Use>
decltype(auto) with_words(const char* name, py::handle object, Use&& use) {
  using Narrow = std::conditional_t<kConst, const std::uint32_t, std::uint32_t>;
  using Wide = std::conditional_t<kConst, const std::uint64_t, std::uint64_t>;
  const py::array array = as_array(name, object);
  if (has_dtype<Narrow>(array)) return use(flat_span<Narrow>(name, object));
  if (has_dtype<Wide>(array)) return use(flat_span<Wide>(name, object));
  throw py::type_error(std::string(name) + " must have dtype uint32 or uint64, got " +
                       py::str(array.dtype()).cast<std::string>());
}

// A contiguous view of any object with the buffer protocol. Made and destroyed with the
// GIL held; used without it.
class BufferView {
 public:
  BufferView(const char* name, py::handle object) {
    if (PyObject_CheckBuffer(object.ptr()) == 0)
      throw py::type_error(std::string(name) + " must be bytes-like, got " + type_name(object));
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) throw py::error_already_set();
  }
  ~BufferView() { PyBuffer_Release(&view_); }
  BufferView(const BufferView&) = delete;
  BufferView& operator=(const BufferView&) = delete;
  BufferView(BufferView&& other) noexcept : view_(other.view_) { other.view_ = {}; }

  std::span<const std::byte> bytes() const {
    return {static_cast<const std::byte*>(view_.buf), static_cast<std::size_t>(view_.len)};
  }

 private:
  Py_buffer view_{};
};

inline std::vector<BufferView> buffer_views(const char* name, py::handle sequence) {
  std::vector<BufferView> views;
  for (const py::handle item : py::iter(sequence)) views.emplace_back(name, item);
  return views;
}

inline std::vector<std::span<const std::byte>> spans_of(const std::vector<BufferView>& views) {
  std::vector<std::span<const std::byte>> spans;
  spans.reserve(views.size());
  for (const BufferView& view : views) spans.push_back(view.bytes());
  return spans;
}

// Exactly `size` bytes.
inline BufferView fixed_bytes(const char* name, py::handle object, std::size_t size) {
  BufferView view(name, object);
  if (view.bytes().size() != size)
    throw ConfigError(std::string(name) + " must have " + std::to_string(size) + " bytes, got " +
                      std::to_string(view.bytes().size()));
  return view;
}

// An integer argument within [low, high]. Numbers that are not integers are a TypeError;
// pybind's own conversion would print every other argument in its error, model values
// included.
template <std::integral Integer>
Integer to_integer(const char* name, py::handle object,
                   Integer low = std::numeric_limits<Integer>::min(),
                   Integer high = std::numeric_limits<Integer>::max()) {
  if (PyIndex_Check(object.ptr()) == 0)
    throw py::type_error(std::string(name) + " must be an integer, got " + type_name(object));
  const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
  if (!number) throw py::error_already_set();
  if (number < py::int_(low) || number > py::int_(high))
    throw ConfigError(std::string(name) + " must be " + std::to_string(low) + " to " +
                      std::to_string(high) + ", got " + py::str(number).cast<std::string>());
  return number.cast<Integer>();
}

inline bool to_bool(const char* name, py::handle object) {
  if (!py::isinstance<py::bool_>(object))
    throw py::type_error(std::string(name) + " must be True or False, got " + type_name(object));
  return object.cast<bool>();
}

// The C++ object behind an instance of a bound class.
template <class T>
T& instance(const char* name, py::handle object) {
  if (!py::isinstance<T>(object))
    throw py::type_error(std::string(name) + " must be a " +
                         py::str(py::type::of<T>().attr("__name__")).template cast<std::string>() +
                         ", got " + type_name(object));
  return object.cast<T&>();
}

}  // namespace veilsum
