// One step of a server optimizer, with the arrays it works on.
#pragma once

#include <string>
#include <vector>

#include "bindings/device_array.h"
#include "bindings/tensors.h"
#include "optimize/server_step.h"

namespace veilsum {

// Which tensors a list of arrays has a place for, in which dtype, and whether they are written to.
enum class StepRole { model, moments, updated };

// Arrays of a step: of NumPy, or, those of floating-point tensors all alike, on one device. Held
// like TensorArrays.
class StepArrays {
 public:
  // Of moments there is one array per floating-point tensor, in its moment dtype, or none at all;
  // integer tensors, and all if there are none, get null.
  StepArrays(const Layout& layout, StepRole role, py::handle arrays)
      : role_(role), pointers_(layout.tensors().size()) {
    const py::list items(py::reinterpret_borrow<py::object>(arrays));
    if (role == StepRole::moments && items.empty()) return;
    std::size_t next = 0;
    for (std::size_t i = 0; i < pointers_.size(); ++i) {
      const Tensor& tensor = layout.tensors()[i];
      if (role == StepRole::moments && !is_floating(tensor.dtype)) continue;
      if (next == items.size()) throw ConfigError("there are too few arrays for the layout");
      pointers_[i] = add(tensor, items[next++]);
    }
    if (next != items.size()) throw ConfigError("there are too many arrays for the layout");
  }

  MutableTensorData pointers() const { return pointers_; }
  TensorData values() const { return {pointers_.data(), pointers_.size()}; }
  bool empty() const { return owners_.empty(); }
  // Null if they lie on the host.
  const DeviceOwner& device() const { return device_; }

 private:
  std::byte* add(const Tensor& tensor, const py::object& item) {
    const DType dtype = role_ == StepRole::moments ? moment_dtype(tensor.dtype) : tensor.dtype;
    owners_.push_back(item);
    if (!is_floating(dtype)) return host_place(tensor, dtype, item);
    const bool resident = py::isinstance<DeviceArray>(item);
    if (floats_++ != 0 && resident != (device_ != nullptr))
      throw ConfigError("the arrays of a step lie all on the host or all on one device, tensor '" +
                        tensor.name + "' lies elsewhere");
    return resident ? device_place(tensor, dtype, item.cast<const DeviceArray&>())
                    : host_place(tensor, dtype, item);
  }

  // What is only read is written through the pointer by nobody.
  std::byte* host_place(const Tensor& tensor, DType dtype, const py::object& item) const {
    py::array array = tensor_array(tensor, dtype, item);
    if (role_ == StepRole::model)
      return const_cast<std::byte*>(static_cast<const std::byte*>(array.data()));
    if (!array.writeable()) throw py::type_error("arrays['" + tensor.name + "'] must be writable");
    return static_cast<std::byte*>(array.mutable_data());
  }

  std::byte* device_place(const Tensor& tensor, DType dtype, const DeviceArray& array) {
    if (device_ == nullptr) device_ = array.device;
    if (array.device->name() != device_->name())
      throw ConfigError("tensor '" + tensor.name + "' is on " + array.device->name() +
                        ", others are on " + device_->name());
    if (array.dtype != dtype || array.elements() != tensor.elements)
      throw ConfigError("tensor '" + tensor.name + "' is not as the layout says");
    if (array.read_only && role_ != StepRole::model)
      throw ConfigError("the array of tensor '" + tensor.name + "' may only be read");
    return const_cast<std::byte*>(array.data);
  }

  const StepRole role_;
  std::vector<py::object> owners_;
  std::vector<std::byte*> pointers_;
  std::size_t floats_ = 0;
  DeviceOwner device_;
};

class BoundServerStep {
 public:
  BoundServerStep(py::object layout, const std::string& optimizer,
                  const OptimizerSettings& settings, py::handle model, py::handle first,
                  py::handle second, py::handle updated)
      : owner_(layout),
        kind_(optimizer_kind(optimizer)),
        layout_(instance<Layout>("layout", layout)),
        model_(layout_, StepRole::model, model),
        first_(layout_, StepRole::moments, first),
        second_(layout_, StepRole::moments, second),
        updated_(layout_, StepRole::updated, updated),
        step_(layout_, kind_, settings,
              {model_.values(), first_.pointers(), second_.pointers(), updated_.pointers()},
              {.model = model_.device() != nullptr,
               .moments = first_.device() != nullptr || second_.device() != nullptr,
               .updated = updated_.device() != nullptr}) {
    const bool floats = layout_.group_size(kFloatGroup) != 0;
    if (floats &&
        (first_.empty() == has_first_moment(kind_) || second_.empty() == has_second_moment(kind_)))
      throw ConfigError("optimizer '" + optimizer + "' has other moments than the given ones");
    for (const StepArrays* arrays : {&model_, &first_, &second_, &updated_}) note_device(*arrays);
    if (!first_.empty() && !second_.empty() && first_.device() != second_.device() &&
        (first_.device() == nullptr || second_.device() == nullptr))
      throw ConfigError("first and second moments lie together, on the host or on a device");
  }
  BoundServerStep(const BoundServerStep&) = delete;
  BoundServerStep& operator=(const BoundServerStep&) = delete;

  const ServerStep& step() const { return step_; }
  // That has some of the arrays; "" if there is none.
  std::string device() const { return device_ == nullptr ? "" : device_->name(); }

 private:
  void note_device(const StepArrays& arrays) {
    if (arrays.device() == nullptr) return;
    if (device_ == nullptr) device_ = arrays.device();
    if (arrays.device()->name() != device_->name())
      throw ConfigError("arrays of a step lie on " + arrays.device()->name() + " and on " +
                        device_->name());
  }

  py::object owner_;  // of the layout
  OptimizerKind kind_;
  const Layout& layout_;
  StepArrays model_;
  StepArrays first_;
  StepArrays second_;
  StepArrays updated_;
  ServerStep step_;
  DeviceOwner device_;
};

}  // namespace veilsum
