// Instruction sets and CUDA devices.
#include <string>
#include <vector>

#include "base/error.h"
#include "bindings/arrays.h"
#include "bindings/register.h"
#include "device/device.h"
#include "device/device_mean.h"
#include "device/registry.h"
#include "kernels/aes_dispatch.h"
#include "kernels/dispatch.h"
#if defined(VEILSUM_WITH_EMULATOR)
#include "settings.h"
#endif

namespace veilsum {
namespace {

py::tuple supported_isas() {
  const auto& tables = supported_kernels();
  py::tuple names(tables.size());
  for (std::size_t i = 0; i < tables.size(); ++i) names[i] = tables[i]->name;
  return names;
}

std::string active_isa() { return kernels().name; }

py::tuple aes_names() {
  const auto supported = supported_aes();
  py::tuple names(supported.size());
  for (std::size_t i = 0; i < supported.size(); ++i) names[i] = py::str(supported[i]);
  return names;
}

std::string compiler() {
#if defined(__clang__)
  return "Clang " __clang_version__;
#else
  return "GNU " __VERSION__;
#endif
}

py::tuple no_cuda(bool built, const std::string& reason) {
  return py::make_tuple(built, py::tuple(), reason);
}

py::tuple cuda_status() {
  if (cuda_api() == nullptr) return no_cuda(false, "this build has no CUDA backend");
  std::string reason;
  std::vector<DeviceOwner> devices;
  try {
    devices = list_devices(*cuda_api(), reason);
  } catch (const DeviceError& error) {
    return no_cuda(true, error.what());
  }
  py::tuple names(devices.size());
  for (std::size_t i = 0; i < devices.size(); ++i) names[i] = py::str(devices[i]->model());
  return py::make_tuple(true, names, reason);
}

void set_launch_shape(py::object blocks, py::object threads) {
  use_launch_shape(
      {to_integer<unsigned>("blocks", blocks), to_integer<unsigned>("threads", threads)});
}

void set_pass_memory(py::object window_bytes, py::object window_tiles) {
  use_pass_memory({to_integer<std::size_t>("window_bytes", window_bytes, 1),
                   to_integer<std::size_t>("window_tiles", window_tiles, 1)});
}

#if defined(VEILSUM_WITH_EMULATOR)
void set_emulator(std::uint64_t seed, std::size_t memory_bytes, std::uint64_t lost_at_call,
                  const py::bytes& needle) {
  vs_emu::use({seed, memory_bytes, lost_at_call, needle});
}
std::uint64_t emulator_needles() { return vs_emu::needles_found(); }
std::uint64_t emulator_calls() { return vs_emu::calls(); }
std::size_t emulator_copied_bytes() { return vs_emu::copied_bytes(); }
std::size_t emulator_bytes() { return vs_emu::allocated_bytes(); }
#else
void set_emulator(std::uint64_t, std::size_t, std::uint64_t, const py::bytes&) {
  device_api("emu");
}
std::uint64_t emulator_needles() { return 0; }
std::uint64_t emulator_calls() { return 0; }
std::size_t emulator_copied_bytes() { return 0; }
std::size_t emulator_bytes() { return 0; }
#endif

}  // namespace

void register_devices(py::module_& module) {
  module.def("supported_isas", &supported_isas);
  module.def("active_isa", &active_isa);
  module.def("use_isa", [](const std::string& name) { use_isa(name); }, py::arg("name"));
  module.def("supported_aes", &aes_names);
  module.def("active_aes", [] { return std::string(active_aes()); });
  module.def("use_aes", [](const std::string& name) { use_aes(name); }, py::arg("name"));
  module.def("compiler", &compiler);
  module.def("use_launch_shape", &set_launch_shape, py::kw_only(), py::arg("blocks"),
             py::arg("threads"));
  module.def("use_pass_memory", &set_pass_memory, py::kw_only(), py::arg("window_bytes"),
             py::arg("window_tiles"));
  module.def("use_emulator", &set_emulator, py::kw_only(), py::arg("seed") = 0,
             py::arg("memory_bytes") = std::size_t{1} << 30, py::arg("lost_at_call") = 0,
             py::arg("needle") = py::bytes());
  module.def("emulator_needles", &emulator_needles);
  module.def("emulator_calls", &emulator_calls);
  module.def("emulator_copied_bytes", &emulator_copied_bytes);
  module.def("emulator_bytes", &emulator_bytes);
  module.def("require_device", [](const std::string& name) { open_device(name); }, py::arg("name"));
  module.def("cuda_status", &cuda_status);
}

}  // namespace veilsum
