// One array per tensor of a layout, in host memory or on a device.
#pragma once

#include <algorithm>
#include <iterator>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/device_array.h"
#include "bindings/tensors.h"
#include "device/device_encode.h"

namespace veilsum {

// As TensorArrays, of which floating-point tensors may be DeviceArrays of one device.
class PlacedArrays {
 public:
  // `device` is null for the CPU.
  PlacedArrays(const Layout& layout, py::handle arrays, const Device* device) {
    const auto& tensors = layout.tensors();
    for (const py::handle item : py::iter(arrays)) {
      if (data_.size() == tensors.size())
        throw ConfigError("the layout has " + std::to_string(tensors.size()) +
                          " tensors, got more arrays");
      add(tensors[data_.size()], item, device);
    }
    if (data_.size() < tensors.size())
      throw ConfigError("the layout has " + std::to_string(tensors.size()) + " tensors, got " +
                        std::to_string(data_.size()) + " arrays");
  }

  TensorData pointers() const { return data_; }
  PlacedTensors placed() const { return {data_, on_device_}; }
  bool any_on_device() const { return std::ranges::count(on_device_, 0) != std::ssize(on_device_); }

 private:
  void add(const Tensor& tensor, py::handle item, const Device* device) {
    const bool there = py::isinstance<DeviceArray>(item);
    if (there) {
      require_tensor(tensor, item.cast<const DeviceArray&>(), device);
      data_.push_back(item.cast<const DeviceArray&>().data);
    } else {
      data_.push_back(
          static_cast<const std::byte*>(tensor_array(tensor, tensor.dtype, item).data()));
    }
    on_device_.push_back(there);
    owners_.push_back(py::reinterpret_borrow<py::object>(item));
  }

  static void require_tensor(const Tensor& tensor, const DeviceArray& array, const Device* device) {
    const std::string name = "arrays['" + tensor.name + "']";
    if (device == nullptr || array.device->name() != device->name())
      throw ConfigError(name + " is on " + array.device->name() + ", not on " +
                            (device == nullptr ? std::string("the host") : device->name()),
                        "copy it to the host first");
    if (array.dtype != tensor.dtype || !is_floating(tensor.dtype))
      throw py::type_error(name + " must have dtype " + std::string(dtype_name(tensor.dtype)) +
                           " and be a floating-point tensor, got " +
                           std::string(dtype_name(array.dtype)));
    if (array.elements() != tensor.elements)
      throw ConfigError(name + " must have " + std::to_string(tensor.elements) + " elements, got " +
                        std::to_string(array.elements()));
  }

  std::vector<py::object> owners_;
  std::vector<const std::byte*> data_;
  std::vector<std::uint8_t> on_device_;
};

}  // namespace veilsum
