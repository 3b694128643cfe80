// Arrays of other libraries through DLPack.
#pragma once

#include <pybind11/pybind11.h>

namespace veilsum {

// A host DLPack capsule, of either generation, as (NumPy array sharing its memory, dtype
// name). Consumes the capsule. bf16 becomes uint16 bit patterns.
//
// Throws ConfigError if the tensor is not on the host or no layout can hold its dtype;
// TypeError if `capsule` is not an unconsumed DLPack capsule.
pybind11::tuple import_dlpack(pybind11::object capsule);

}  // namespace veilsum
