// Overwriting of local variables that held keys or values in the clear.
#pragma once

#include "element/annotate.h"

namespace veilsum {
namespace {

// The empty assembly keeps the compiler from seeing that nobody reads the variable again.
template <class Local>
VS_FN void wipe_local(Local& local) {
  __builtin_memset(&local, 0, sizeof local);
  __asm__ volatile("" : : "r"(&local) : "memory");
}

}  // namespace
}  // namespace veilsum
