// Updates into aggregators, and results out of them: what all aggregators do alike.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "aggregate/contributors.h"
#include "aggregate/update_set.h"
#include "bindings/arrays.h"
#include "bindings/recycled.h"
#include "bindings/tensors.h"
#include "bindings/update_form.h"

namespace veilsum {

// A weight beyond 64 bits is the site's mistake like one beyond the limit, and is cut to a
// number that is beyond it too.
inline std::int64_t to_weight(py::handle weight) {
  if (PyIndex_Check(weight.ptr()) == 0)
    throw py::type_error("weight must be an integer, got " + type_name(weight));
  const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(weight.ptr()));
  if (!number) throw py::error_already_set();
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow != 0) return overflow < 0 ? INT64_MIN : INT64_MAX;
  return value;
}

// Keeps Python objects alive for a thread that may not hold the GIL when it lets go of them.
template <class Kept>
Owner own(Kept kept) {
  return Owner(new Kept(std::move(kept)), [](const void* pointer) {
    const py::gil_scoped_acquire acquire;
    delete static_cast<const Kept*>(pointer);
  });
}

// Whether nobody can ever change the bytes: a bytes object, or a view of one.
inline bool is_immutable(py::handle buffer) {
  if (PyBytes_CheckExact(buffer.ptr())) return true;
  if (!PyMemoryView_Check(buffer.ptr())) return false;
  const Py_buffer* view = PyMemoryView_GET_BUFFER(buffer.ptr());
  return view->obj != nullptr && PyBytes_CheckExact(view->obj);
}

inline bool are_immutable(py::handle buffers) {
  for (const py::handle buffer : py::iter(buffers))
    if (!is_immutable(buffer)) return false;
  return true;
}

template <class Aggregator>
void add_chunks(Aggregator& aggregator, const std::string& site, py::object weight,
                py::object chunks, py::object codec, double scale, py::object plan_digest,
                py::object update_id, py::object chunk_coordinates, double gain,
                py::object transform) {
  const Share share(to_weight(weight), gain);
  const UpdateForm form =
      to_form(codec, scale, plan_digest, update_id, chunk_coordinates, transform);
  const py::list pieces(chunks);
  const bool borrow = are_immutable(pieces);
  std::vector<BufferView> views = buffer_views("chunks", pieces);
  const std::vector<std::span<const std::byte>> spans = spans_of(views);
  Owner owner = own(std::move(views));
  py::gil_scoped_release release;
  aggregator.add_chunks(site, share, spans, form, borrow ? owner : nullptr);
}

// (begin, size) of each chunk in a file.
inline std::vector<FilePlace> to_places(py::handle places) {
  std::vector<FilePlace> found;
  for (const py::handle item : py::iter(places)) {
    const py::tuple place = py::reinterpret_borrow<py::object>(item);
    if (place.size() != 2) throw py::type_error("places must be pairs (begin, size)");
    found.push_back({to_integer<std::uint64_t>("places", place[0]),
                     to_integer<std::uint64_t>("places", place[1])});
  }
  return found;
}

// New arrays for the tensors of a result.
class ResultArrays {
 public:
  explicit ResultArrays(const Layout& layout) {
    for (const Tensor& tensor : layout.tensors()) {
      py::array array = recycled_array(tensor, tensor.dtype);
      places_.push_back(static_cast<std::byte*>(array.mutable_data()));
      arrays_.append(std::move(array));
    }
  }

  MutableTensorData places() const { return places_; }
  py::list arrays() const { return arrays_; }

 private:
  py::list arrays_;
  std::vector<std::byte*> places_;
};

}  // namespace veilsum
