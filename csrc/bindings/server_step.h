// One step of a server optimizer, with the arrays it works on.
#pragma once

#include <string>
#include <vector>

#include "bindings/tensors.h"
#include "optimize/server_step.h"

namespace veilsum {

// Which floating-point tensors a list of arrays has a place for.
enum class Places { all_tensors, moments };

// Arrays that a step writes to. Held like TensorArrays.
class WritableArrays {
 public:
  // With Places::moments there is one array per floating-point tensor, in its moment dtype, or
  // none at all; integer tensors, and all if there are none, get null.
  WritableArrays(const Layout& layout, Places places, py::handle arrays)
      : pointers_(layout.tensors().size()) {
    const py::list items(py::reinterpret_borrow<py::object>(arrays));
    if (places == Places::moments && items.empty()) return;
    std::size_t next = 0;
    for (std::size_t i = 0; i < pointers_.size(); ++i) {
      const Tensor& tensor = layout.tensors()[i];
      if (places == Places::moments && !is_floating(tensor.dtype)) continue;
      if (next == items.size()) throw ConfigError("there are too few arrays for the layout");
      const DType dtype = places == Places::moments ? moment_dtype(tensor.dtype) : tensor.dtype;
      py::array array = tensor_array(tensor, dtype, items[next++]);
      if (!array.writeable())
        throw py::type_error("arrays['" + tensor.name + "'] must be writable");
      pointers_[i] = static_cast<std::byte*>(array.mutable_data());
      owners_.push_back(std::move(array));
    }
    if (next != items.size()) throw ConfigError("there are too many arrays for the layout");
  }

  MutableTensorData pointers() const { return pointers_; }
  bool empty() const { return owners_.empty(); }

 private:
  std::vector<py::array> owners_;
  std::vector<std::byte*> pointers_;
};

class BoundServerStep {
 public:
  BoundServerStep(py::object layout, const std::string& optimizer,
                  const OptimizerSettings& settings, py::handle model, py::handle first,
                  py::handle second, py::handle updated)
      : owner_(layout),
        kind_(optimizer_kind(optimizer)),
        layout_(instance<Layout>("layout", layout)),
        model_(layout_, model),
        first_(layout_, Places::moments, first),
        second_(layout_, Places::moments, second),
        updated_(layout_, Places::all_tensors, updated),
        step_(layout_, kind_, settings,
              {model_.pointers(), first_.pointers(), second_.pointers(), updated_.pointers()}) {
    const bool floats = layout_.group_size(kFloatGroup) != 0;
    if (floats &&
        (first_.empty() == has_first_moment(kind_) || second_.empty() == has_second_moment(kind_)))
      throw ConfigError("optimizer '" + optimizer + "' has other moments than the given ones");
  }
  BoundServerStep(const BoundServerStep&) = delete;
  BoundServerStep& operator=(const BoundServerStep&) = delete;

  const ServerStep& step() const { return step_; }

 private:
  py::object owner_;  // of the layout
  OptimizerKind kind_;
  const Layout& layout_;
  TensorArrays model_;
  WritableArrays first_;
  WritableArrays second_;
  WritableArrays updated_;
  ServerStep step_;
};

}  // namespace veilsum
