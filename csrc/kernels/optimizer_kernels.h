// The loops of the server optimizers, as one CPU level provides them. Nothing is checked here.
#pragma once

#include <cstddef>

#include "element/optimizer.h"
#include "kernels/codec_kernels.h"

namespace veilsum {

// A value at any address. (A template argument would lose the attribute that says so.)
template <class T>
struct Wire;
template <>
struct Wire<float> {
  typedef WireFloat Value;
};
template <>
struct Wire<double> {
  typedef WireDouble Value;
};

// Values that lie together. `updated` may be `model`; moments change in place, and those that
// a kind does not have are not looked at.
template <class T>
struct OptimizerArrays {
  const typename Wire<T>::Value* model;
  const typename Wire<T>::Value* mean;
  typename Wire<T>::Value* first;
  typename Wire<T>::Value* second;
  typename Wire<T>::Value* updated;
  std::size_t count;
};

template <class T>
using OptimizerLoop = void (*)(const OptimizerArrays<T>& arrays, const OptimizerRule& rule);

// Indexed by OptimizerKind. What does not fit is written as infinite.
struct OptimizerKernels {
  // New values rounded to the nearest float.
  OptimizerLoop<float> step_f32[kOptimizerKinds];
  // New values rounded to odd: rounding those again, to a format of fewer bits, is rounding once.
  OptimizerLoop<float> step_odd[kOptimizerKinds];
  OptimizerLoop<double> step_f64[kOptimizerKinds];
};

}  // namespace veilsum
