// veilsum._native: table of contents. _native.pyi documents what is registered here.
#include "bindings/register.h"

PYBIND11_MODULE(_native, module) {
  veilsum::register_errors(module);
  veilsum::register_devices(module);
  veilsum::register_device_bench(module);
  veilsum::register_device_arrays(module);
  veilsum::register_secrets(module);
  veilsum::register_layout(module);
  veilsum::register_codec(module);
  veilsum::register_import(module);
  veilsum::register_masks(module);
  veilsum::register_optimizers(module);
  veilsum::register_mean(module);
  veilsum::register_privacy(module);
  veilsum::register_rules(module);
  veilsum::register_rotation(module);
}
