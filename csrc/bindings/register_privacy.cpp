// Central differential privacy.
#include <pybind11/stl.h>

#include <memory>
#include <string>

#include "bindings/adding.h"
#include "bindings/arrays.h"
#include "bindings/register.h"
#include "bindings/secrets.h"
#include "bindings/server_step.h"
#include "bindings/tensors.h"
#include "privacy/discrete_gaussian.h"
#include "privacy/noise_words.h"
#include "privacy/private_mean.h"

namespace veilsum {
namespace {

std::unique_ptr<PrivateMean> make_private_mean(py::object layout, double clip,
                                               double noise_multiplier, py::object denominator,
                                               double count_noise, py::object threads,
                                               const std::string& spool) {
  PrivateMeanSettings settings = {{clip, noise_multiplier},
                                  to_integer<std::uint64_t>("denominator", denominator),
                                  count_noise,
                                  to_integer<unsigned>("threads", threads, 1, kMaxThreads),
                                  spool};
  return std::make_unique<PrivateMean>(instance<Layout>("layout", layout), std::move(settings));
}

void add_private_arrays(PrivateMean& mean, const std::string& site, py::object weight,
                        py::object arrays, double gain) {
  const TensorArrays tensors(mean.layout(), arrays);
  const Share share(to_weight(weight), gain);
  py::gil_scoped_release release;
  mean.add_tensors(site, share, tensors.pointers());
}

PrivateContribution take(PrivateMean& mean, const MeanSink& sink, py::object key) {
  const std::shared_ptr<Secret> secret = to_secret("key", key);
  py::gil_scoped_release release;
  return mean.finish(sink, std::as_const(*secret).bytes());
}

py::tuple to_tuple(const PrivateContribution& taken) {
  return py::make_tuple(py::tuple(py::cast(taken.sites)), taken.denominator, taken.noisy_balance);
}

py::tuple finish_private(PrivateMean& mean, py::object key) {
  ResultArrays result(mean.layout());
  const PrivateContribution taken = take(mean, MeanWriter(mean.layout(), result.places()), key);
  return py::make_tuple(result.arrays(), to_tuple(taken));
}

py::tuple finish_private_step(PrivateMean& mean, const BoundServerStep& bound, py::object key) {
  return to_tuple(take(mean, ModelStepper(mean.layout(), bound.step()), key));
}

py::tuple grid(const PrivateMean& mean) {
  return py::make_tuple(mean.grid().exponent, mean.grid().sensitivity, mean.grid().sigma);
}

py::array_t<std::int64_t> discrete_gaussian(py::object key, py::object stream, py::object sigma,
                                            py::object count) {
  const std::shared_ptr<Secret> secret = to_secret("key", key);
  if (secret->size() != kMaskKeyBytes) throw ConfigError("key must have 32 bytes");
  const auto scale = to_integer<std::uint64_t>("sigma", sigma, 1, kMaxSigma - 1);
  const auto number = to_integer<std::uint32_t>("stream", stream);
  py::array_t<std::int64_t> samples(
      to_integer<py::ssize_t>("count", count, 0, std::int64_t{1} << 32));
  std::int64_t* out = samples.mutable_data();
  const auto size = samples.size();
  py::gil_scoped_release release;
  NoiseWords words(std::as_const(*secret).bytes(), number);
  for (py::ssize_t i = 0; i < size; ++i) out[i] = sample_discrete_gaussian(scale, words);
  return samples;
}

}  // namespace

void register_privacy(py::module_& module) {
  py::class_<PrivateMean>(module, "PrivateMean", py::is_final())
      .def(py::init(&make_private_mean), py::arg("layout"), py::kw_only(), py::arg("clip"),
           py::arg("noise_multiplier"), py::arg("denominator"), py::arg("count_noise"),
           py::arg("threads"), py::arg("spool"))
      .def("add_arrays", &add_private_arrays, py::arg("site"), py::arg("weight"), py::arg("arrays"),
           py::kw_only(), py::arg("gain"))
      // Never borrows: arrays that change afterwards could have any norm.
      .def("borrow_arrays", &add_private_arrays, py::arg("site"), py::arg("weight"),
           py::arg("arrays"), py::kw_only(), py::arg("gain"))
      .def("add_chunks", &add_chunks<PrivateMean>, py::arg("site"), py::arg("weight"),
           py::arg("chunks"), py::kw_only(), py::arg("codec"), py::arg("scale"),
           py::arg("plan_digest"), py::arg("update_id"), py::arg("chunk_coordinates"),
           py::arg("gain"), py::arg("transform") = py::none())
      .def(
          "remove",
          [](PrivateMean& mean, const std::string& site) {
            py::gil_scoped_release release;
            mean.remove(site);
          },
          py::arg("site"))
      .def_property_readonly(
          "sites", [](const PrivateMean& mean) { return py::tuple(py::cast(mean.sites())); })
      .def_property_readonly("grid", &grid)
      .def("finish", &finish_private, py::kw_only(), py::arg("key"))
      .def("finish_step", &finish_private_step, py::arg("step"), py::kw_only(), py::arg("key"));
  module.def("sample_discrete_gaussian", &discrete_gaussian, py::arg("key"), py::kw_only(),
             py::arg("stream"), py::arg("sigma"), py::arg("count"));
}

}  // namespace veilsum
