// Times of a device's copies and kernels, for bench/gpu.py.
#include "bindings/arrays.h"
#include "bindings/register.h"
#include "device/device_bench.h"
#include "device/launch_times.h"

namespace veilsum {
namespace {

py::tuple benchmark_names() {
  const std::vector<std::string> names = device_benchmarks();
  py::tuple result(names.size());
  for (std::size_t i = 0; i < names.size(); ++i) result[i] = py::str(names[i]);
  return result;
}

py::tuple device_benchmark(const std::string& backend, const std::string& name, py::object bytes,
                           py::object repeats) {
  const auto size = to_integer<std::size_t>("bytes", bytes, 1);
  const auto times = to_integer<unsigned>("repeats", repeats, 1);
  DeviceTimes found;
  {
    py::gil_scoped_release release;
    found = run_device_benchmark(*open_device(backend), name, size, times);
  }
  py::tuple seconds(found.seconds.size());
  for (std::size_t i = 0; i < found.seconds.size(); ++i) seconds[i] = found.seconds[i];
  return py::make_tuple(seconds, found.bytes, found.operations);
}

py::list kernel_times(const std::string& backend, const py::function& call) {
  LaunchTimes times(open_device(backend));
  call();
  py::list result;
  for (const KernelTime& one : times.sums())
    result.append(py::make_tuple(one.kernel, one.launches, one.seconds));
  return result;
}

}  // namespace

void register_device_bench(py::module_& module) {
  module.def("device_benchmarks", &benchmark_names);
  module.def("kernel_times", &kernel_times, py::arg("backend"), py::arg("call"));
  module.def("device_benchmark", &device_benchmark, py::arg("backend"), py::arg("name"),
             py::kw_only(), py::arg("bytes"), py::arg("repeats"));
}

}  // namespace veilsum
