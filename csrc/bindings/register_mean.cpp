// The exact weighted mean.
#include <pybind11/stl.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "aggregate/mean.h"
#include "aggregate/rounding.h"
#include "bindings/adding.h"
#include "bindings/arrays.h"
#include "bindings/device_array.h"
#include "bindings/register.h"
#include "bindings/server_step.h"
#include "bindings/tensors.h"

namespace veilsum {
namespace {

std::unique_ptr<MeanAggregator> make_mean(py::object layout, py::object threads,
                                          const std::string& spool, double streaming_max_abs,
                                          py::object streaming_max_total_weight,
                                          const std::string& backend) {
  MeanSettings settings = {
      to_integer<unsigned>("threads", threads, 1, kMaxThreads), spool, streaming_max_abs,
      to_integer<std::uint64_t>("streaming_max_total_weight", streaming_max_total_weight),
      backend == "cpu" ? nullptr : open_device(backend)};
  return std::make_unique<MeanAggregator>(instance<Layout>("layout", layout), std::move(settings));
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

void add_file(MeanAggregator& mean, const std::string& site, py::object weight, py::object file,
              py::object places, py::object codec, double scale, py::object plan_digest,
              py::object update_id, py::object chunk_coordinates) {
  const Share share(to_weight(weight), 1.0);
  const UpdateForm form =
      to_form(codec, scale, plan_digest, update_id, chunk_coordinates, py::none());
  const int descriptor = to_integer<int>("file", file, 0);
  const std::vector<FilePlace> found = to_places(places);
  py::gil_scoped_release release;
  mean.add_file(site, share, descriptor, found, form);
}

// Floating-point tensors as DeviceArray, integers as NumPy arrays.
class ResidentArrays {
 public:
  ResidentArrays(const Layout& layout, const Device& device, py::handle arrays) {
    for (const py::handle item : py::iter(arrays)) {
      if (places_.size() == layout.tensors().size()) break;
      add(layout.tensors()[places_.size()], device, item);
    }
    if (places_.size() != layout.tensors().size() || py::len(arrays) != places_.size())
      throw ConfigError("the layout has " + std::to_string(layout.tensors().size()) +
                        " tensors, got " + std::to_string(py::len(arrays)) + " arrays");
  }

  TensorData places() const { return places_; }

 private:
  void add(const Tensor& tensor, const Device& device, py::handle item) {
    owners_.push_back(py::reinterpret_borrow<py::object>(item));
    if (!is_floating(tensor.dtype)) {
      places_.push_back(
          static_cast<const std::byte*>(tensor_array(tensor, tensor.dtype, item).data()));
      return;
    }
    const auto& array = instance<DeviceArray>("arrays", item);
    if (array.device->name() != device.name())
      throw ConfigError("tensor '" + tensor.name + "' is on " + array.device->name() +
                        ", the aggregator is on " + device.name());
    if (array.dtype != tensor.dtype || array.elements() != tensor.elements)
      throw ConfigError("tensor '" + tensor.name + "' is not as the layout says");
    places_.push_back(array.data);
  }

  std::vector<py::object> owners_;
  std::vector<const std::byte*> places_;
};

void borrow_device_arrays(MeanAggregator& mean, const std::string& site, py::object weight,
                          py::object arrays, double gain) {
  const Share share(to_weight(weight), gain);
  if (mean.device() == nullptr) throw ConfigError("this aggregator is on no device");
  ResidentArrays resident(mean.layout(), *mean.device(), arrays);
  const std::vector<const std::byte*> places(resident.places().begin(), resident.places().end());
  Owner owner = own(std::move(resident));
  py::gil_scoped_release release;
  mean.add_resident(site, share, places, std::move(owner));
}

py::tuple finish_with_sites(const MeanAggregator& mean) {
  ResultArrays result(mean.layout());
  Contribution finished;
  {
    py::gil_scoped_release release;
    finished = mean.finish(result.places());
  }
  return py::make_tuple(result.arrays(), py::tuple(py::cast(finished.sites)),
                        finished.total_weight);
}

// (sites, total weight) of the updates whose mean the model was stepped by.
py::tuple finish_step(const MeanAggregator& mean, const BoundServerStep& bound) {
  const std::string own = mean.device() == nullptr ? "" : mean.device()->name();
  if (!bound.device().empty() && bound.device() != own)
    throw ConfigError("arrays of the step are on " + bound.device() + ", the aggregator is on " +
                      (own.empty() ? "the host" : own));
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
           py::arg("spool"), py::arg("streaming_max_abs"), py::arg("streaming_max_total_weight"),
           py::arg("backend") = "cpu")
      .def("add_arrays", &add_arrays, py::arg("site"), py::arg("weight"), py::arg("arrays"),
           py::kw_only(), py::arg("gain") = 1.0)
      .def("borrow_arrays", &borrow_arrays, py::arg("site"), py::arg("weight"), py::arg("arrays"),
           py::kw_only(), py::arg("gain") = 1.0)
      .def("borrow_device_arrays", &borrow_device_arrays, py::arg("site"), py::arg("weight"),
           py::arg("arrays"), py::kw_only(), py::arg("gain") = 1.0)
      .def("add_chunks", &add_chunks<MeanAggregator>, py::arg("site"), py::arg("weight"),
           py::arg("chunks"), py::kw_only(), py::arg("codec"), py::arg("scale"),
           py::arg("plan_digest"), py::arg("update_id"), py::arg("chunk_coordinates"),
           py::arg("gain") = 1.0, py::arg("transform") = py::none())
      .def("add_file", &add_file, py::arg("site"), py::arg("weight"), py::arg("file"),
           py::arg("places"), py::kw_only(), py::arg("codec"), py::arg("scale"),
           py::arg("plan_digest"), py::arg("update_id"), py::arg("chunk_coordinates"))
      .def(
          "remove",
          [](MeanAggregator& mean, const std::string& site) {
            py::gil_scoped_release release;
            mean.remove(site);
          },
          py::arg("site"))
      .def_property_readonly("device",
                             [](const MeanAggregator& mean) {
                               return mean.device() == nullptr ? std::string()
                                                               : mean.device()->name();
                             })
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
