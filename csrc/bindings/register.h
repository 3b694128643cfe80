// One registration function per file of this folder.
#pragma once

#include <pybind11/pybind11.h>

namespace veilsum {

void register_errors(pybind11::module_& module);
void register_devices(pybind11::module_& module);
void register_device_bench(pybind11::module_& module);
void register_device_arrays(pybind11::module_& module);
void register_secrets(pybind11::module_& module);
void register_layout(pybind11::module_& module);
void register_codec(pybind11::module_& module);
void register_import(pybind11::module_& module);
void register_masks(pybind11::module_& module);
void register_optimizers(pybind11::module_& module);
void register_mean(pybind11::module_& module);
void register_privacy(pybind11::module_& module);
void register_rules(pybind11::module_& module);
void register_rotation(pybind11::module_& module);

// Sets the Python error that stands for the C++ exception being handled: for the few
// callbacks that Python calls directly, without pybind11 in between.
void set_python_error();

}  // namespace veilsum
