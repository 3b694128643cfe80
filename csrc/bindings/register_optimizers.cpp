// Server optimizers.
#include <memory>
#include <string>

#include "bindings/arrays.h"
#include "bindings/chunks.h"
#include "bindings/register.h"
#include "bindings/server_step.h"
#include "bindings/tensors.h"

namespace veilsum {
namespace {

std::unique_ptr<BoundServerStep> make_step(py::object layout, const std::string& optimizer,
                                           double learning_rate, double gain, double beta1,
                                           double beta2, double tau, py::object model,
                                           py::object first, py::object second,
                                           py::object updated) {
  return std::make_unique<BoundServerStep>(
      layout, optimizer, OptimizerSettings{learning_rate, gain, beta1, beta2, tau}, model, first,
      second, updated);
}

void apply(const BoundServerStep& bound, py::object mean, py::object threads) {
  const TensorArrays arrays(bound.step().layout(), mean);
  const auto count = to_integer<unsigned>("threads", threads, 1, kMaxThreads);
  py::gil_scoped_release release;
  step_model(bound.step(), arrays.pointers(), count);
}

// (first, second): whether the optimizer keeps that moment.
py::tuple optimizer_moments(const std::string& optimizer) {
  const OptimizerKind kind = optimizer_kind(optimizer);
  return py::make_tuple(has_first_moment(kind), has_second_moment(kind));
}

}  // namespace

void register_optimizers(py::module_& module) {
  py::class_<BoundServerStep>(module, "ServerStep", py::is_final())
      .def(py::init(&make_step), py::arg("layout"), py::kw_only(), py::arg("optimizer"),
           py::arg("learning_rate"), py::arg("gain"), py::arg("beta1"), py::arg("beta2"),
           py::arg("tau"), py::arg("model"), py::arg("first"), py::arg("second"),
           py::arg("updated"))
      .def("apply", &apply, py::arg("mean"), py::kw_only(), py::arg("threads"));
  module.def("optimizer_moments", &optimizer_moments, py::arg("optimizer"));
}

}  // namespace veilsum
