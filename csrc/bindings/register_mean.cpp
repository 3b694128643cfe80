// The exact weighted mean.
#include <pybind11/stl.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "aggregate/mean.h"
#include "aggregate/rounding.h"
#include "bindings/arrays.h"
#include "bindings/register.h"
#include "bindings/server_step.h"
#include "bindings/tensors.h"
#include "bindings/update_form.h"

namespace veilsum {
namespace {

std::unique_ptr<MeanAggregator> make_mean(py::object layout, py::object threads,
                                          const std::string& spool, double streaming_max_abs,
                                          py::object streaming_max_total_weight) {
  MeanSettings settings = {
      to_integer<unsigned>("threads", threads, 1, kMaxThreads), spool, streaming_max_abs,
      to_integer<std::uint64_t>("streaming_max_total_weight", streaming_max_total_weight)};
  return std::make_unique<MeanAggregator>(instance<Layout>("layout", layout), std::move(settings));
}

// A weight beyond 64 bits is the site's mistake like one beyond the limit, and is cut to a
// number that is beyond it too.
std::int64_t to_weight(py::handle weight) {
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
bool is_immutable(py::handle buffer) {
  if (PyBytes_CheckExact(buffer.ptr())) return true;
  if (!PyMemoryView_Check(buffer.ptr())) return false;
  const Py_buffer* view = PyMemoryView_GET_BUFFER(buffer.ptr());
  return view->obj != nullptr && PyBytes_CheckExact(view->obj);
}

bool are_immutable(py::handle buffers) {
  for (const py::handle buffer : py::iter(buffers))
    if (!is_immutable(buffer)) return false;
  return true;
}

void add_arrays(MeanAggregator& mean, const std::string& site, py::object weight, py::object arrays,
                double gain) {
  const TensorArrays tensors(mean.layout(), arrays);
  const Share share(to_weight(weight), gain);
  py::gil_scoped_release release;
  mean.add_tensors(site, share, tensors.pointers(), nullptr);
}

void borrow_arrays(MeanAggregator& mean, const std::string& site, py::object weight,
                   py::object arrays, double gain) {
  const Share share(to_weight(weight), gain);
  TensorArrays tensors(mean.layout(), arrays);
  const std::vector<const std::byte*> places(tensors.pointers().begin(), tensors.pointers().end());
  Owner owner = own(std::move(tensors));
  py::gil_scoped_release release;
  mean.add_tensors(site, share, places, std::move(owner));
}

void add_chunks(MeanAggregator& mean, const std::string& site, py::object weight, py::object chunks,
                py::object codec, double scale, py::object plan_digest, py::object update_id,
                py::object chunk_coordinates, double gain) {
  const Share share(to_weight(weight), gain);
  const UpdateForm form = to_form(codec, scale, plan_digest, update_id, chunk_coordinates);
  const py::list pieces(chunks);
  const bool borrow = are_immutable(pieces);
  std::vector<BufferView> views = buffer_views("chunks", pieces);
  const std::vector<std::span<const std::byte>> spans = spans_of(views);
  Owner owner = own(std::move(views));
  py::gil_scoped_release release;
  mean.add_chunks(site, share, spans, form, borrow ? owner : nullptr);
}

py::tuple finish_with_sites(const MeanAggregator& mean) {
  py::list arrays;
  std::vector<std::byte*> places;
  for (const Tensor& tensor : mean.layout().tensors()) {
    py::array array(array_dtype(tensor.dtype),
                    std::vector<py::ssize_t>(tensor.shape.begin(), tensor.shape.end()));
    places.push_back(static_cast<std::byte*>(array.mutable_data()));
    arrays.append(std::move(array));
  }
  Contribution finished;
  {
    py::gil_scoped_release release;
    finished = mean.finish(places);
  }
  return py::make_tuple(arrays, py::tuple(py::cast(finished.sites)), finished.total_weight);
}

// (sites, total weight) of the updates whose mean the model was stepped by.
py::tuple finish_step(const MeanAggregator& mean, const BoundServerStep& bound) {
  Contribution finished;
  {
    py::gil_scoped_release release;
    finished = mean.finish_step(bound.step());
  }
  return py::make_tuple(py::tuple(py::cast(finished.sites)), finished.total_weight);
}

py::object finish(const MeanAggregator& mean) { return finish_with_sites(mean)[0]; }

py::tuple sites(const MeanAggregator& mean) {
  std::vector<std::string> names;
  {
    py::gil_scoped_release release;
    names = mean.sites();
  }
  return py::tuple(py::cast(names));
}

py::array decode_ring_sum(py::object total, double factor, py::object count) {
  const auto sums = flat_span<const std::int64_t>("total", total);
  const auto wanted = to_integer<std::size_t>("count", count, 0, sums.size());
  py::array_t<double> values(static_cast<py::ssize_t>(wanted));
  const std::span<double> out(values.mutable_data(), wanted);
  {
    py::gil_scoped_release release;
    scale_sums(sums, factor, out);
  }
  return values;
}

}  // namespace

void register_mean(py::module_& module) {
  py::class_<MeanAggregator>(module, "MeanAggregator", py::is_final())
      .def(py::init(&make_mean), py::arg("layout"), py::kw_only(), py::arg("threads"),
           py::arg("spool"), py::arg("streaming_max_abs"), py::arg("streaming_max_total_weight"))
      .def("add_arrays", &add_arrays, py::arg("site"), py::arg("weight"), py::arg("arrays"),
           py::kw_only(), py::arg("gain") = 1.0)
      .def("borrow_arrays", &borrow_arrays, py::arg("site"), py::arg("weight"), py::arg("arrays"),
           py::kw_only(), py::arg("gain") = 1.0)
      .def("add_chunks", &add_chunks, py::arg("site"), py::arg("weight"), py::arg("chunks"),
           py::kw_only(), py::arg("codec"), py::arg("scale"), py::arg("plan_digest"),
           py::arg("update_id"), py::arg("chunk_coordinates"), py::arg("gain") = 1.0)
      .def(
          "remove",
          [](MeanAggregator& mean, const std::string& site) {
            py::gil_scoped_release release;
            mean.remove(site);
          },
          py::arg("site"))
      .def_property_readonly("sites", &sites)
      .def_property_readonly("total_weight",
                             [](const MeanAggregator& mean) {
                               py::gil_scoped_release release;
                               return mean.total_weight();
                             })
      .def("finish", &finish)
      .def("finish_with_sites", &finish_with_sites)
      .def("finish_step", &finish_step, py::arg("step"));
  module.def("decode_ring_sum", &decode_ring_sum, py::arg("total"), py::kw_only(),
             py::arg("factor"), py::arg("count"));
}

}  // namespace veilsum
