// The public rotation, for tests, and for sums that are decoded once.
#include <algorithm>

#include "base/error.h"
#include "base/float_environment.h"
#include "base/parallel.h"
#include "bindings/arrays.h"
#include "bindings/chunks.h"
#include "bindings/register.h"
#include "bindings/rotation.h"
#include "codec/rotation.h"
#include "device/device_rotation.h"
#include "element/rotation.h"

namespace veilsum {
namespace {

template <class Value>
void rotate_span(std::span<Value> values, const Rotation& rotation, std::uint64_t first,
                 bool inverse, unsigned threads) {
  const FloatEnvironment exact;
  parallel_for(values.size(), kRotationTile, threads, [&](const Range& range) {
    const auto tile = values.subspan(range.begin, range.end - range.begin);
    if (inverse)
      unrotate(rotation, first + range.begin, tile);
    else
      rotate(rotation, first + range.begin, tile);
  });
}

void rotate_array(py::object values, py::object block, py::object key, py::object first,
                  py::object inverse, py::object threads, const std::string& backend) {
  const Rotation rotation = to_rotation(block, key, 1);
  const auto start = to_integer<std::uint64_t>("first", first);
  const bool backwards = to_bool("inverse", inverse);
  const auto workers = to_integer<unsigned>("threads", threads, 1, kMaxThreads);
  const DeviceOwner device = backend == "cpu" ? nullptr : open_device(backend);
  const py::array array = as_array("values", values);
  if (start % kRotationTile != 0 || array.size() % kSmallestRotation != 0)
    throw ConfigError("a rotation starts on a multiple of 4096 and has a multiple of 64 values");
  const auto run = [&](auto span) {
    py::gil_scoped_release release;
    if (device != nullptr)
      rotate_on(*device, rotation, backwards, start, span);
    else
      rotate_span(span, rotation, start, backwards, workers);
  };
  if (has_dtype<double>(array)) return run(flat_span<double>("values", values));
  run(flat_span<float>("values", values));
}

std::vector<double> doubles(const char* name, py::handle array) {
  const auto span = flat_span<const double>(name, array);
  return {span.begin(), span.end()};
}

Transform make_transform(py::object layout, py::object rotation_block, py::object rotation_key,
                         double rotated_limit, py::object scale_block, py::object scales,
                         py::object limits) {
  Transform transform;
  transform.rotation = to_rotation(rotation_block, rotation_key, kFloatGroup);
  transform.rotated_limit = rotated_limit;
  if (scales.is_none()) return transform;
  transform.scales = doubles("scales", scales);
  transform.limits = doubles("limits", limits);
  transform.grid.emplace(instance<Layout>("layout", layout),
                         to_integer<std::size_t>("scale_block", scale_block),
                         transform.scales.size());
  return transform;
}

Transform make_subsample(py::object codec, py::object keep, py::object key, py::object rescale) {
  const BufferView bytes = fixed_bytes("subsample key", key, sizeof(PhiloxKey));
  Subsample subsample{to_integer<unsigned>("keep", keep), {}, to_bool("rescale", rescale)};
  std::memcpy(&subsample.key, bytes.bytes().data(), sizeof subsample.key);
  require_keep(subsample.keep);
  require_subsample_codec(to_integer<std::uint16_t>("codec", codec));
  Transform transform;
  transform.subsample = subsample;
  return transform;
}

}  // namespace

void register_rotation(py::module_& module) {
  py::class_<Transform>(module, "Transform", py::is_final())
      .def(py::init(&make_transform), py::arg("layout"), py::kw_only(), py::arg("rotation_block"),
           py::arg("rotation_key"), py::arg("rotated_limit"), py::arg("scale_block"),
           py::arg("scales"), py::arg("limits"))
      .def_static("subsample", &make_subsample, py::kw_only(), py::arg("codec"), py::arg("keep"),
                  py::arg("key"), py::arg("rescale"))
      .def_property_readonly("chunk_flags", &Transform::chunk_flags);
  module.def("rotate", &rotate_array, py::arg("values"), py::kw_only(), py::arg("block"),
             py::arg("key"), py::arg("first"), py::arg("inverse"), py::arg("threads"),
             py::arg("backend") = "cpu");
}

}  // namespace veilsum
