// Robust rules: passes over the committed updates of one moment, and what is done with distances.
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "aggregate/mean.h"
#include "aggregate/mean_pass.h"
#include "aggregate/scale.h"
#include "base/float_environment.h"
#include "bindings/adding.h"
#include "bindings/arrays.h"
#include "bindings/register.h"
#include "bindings/tensors.h"
#include "device/device_mean.h"
#include "rules/gram.h"
#include "rules/order_pass.h"
#include "rules/selection.h"

namespace veilsum {
namespace {

// The updates of an aggregator at one moment; kept alive together with it.
struct BoundSnapshot {
  const MeanAggregator& owner;
  UpdateSnapshot set;

  const Layout& layout() const { return owner.layout(); }
  unsigned threads() const { return owner.threads(); }
  const Device* device() const { return owner.device().get(); }  // null: the CPU
};

BoundSnapshot take_snapshot(const MeanAggregator& mean) {
  py::gil_scoped_release release;
  return {mean, mean.snapshot()};
}

// Calls write(places) without the GIL and returns the arrays that were written.
template <class Write>
py::list new_tensors(const BoundSnapshot& snapshot, const Write& write) {
  ResultArrays result(snapshot.layout());
  {
    py::gil_scoped_release release;
    const FloatEnvironment exact;
    write(MutableTensorData(result.places()));
  }
  return result.arrays();
}

RowMix to_rows(const char* name, py::handle object, std::size_t updates) {
  const py::array array = as_array(name, object);
  if (array.ndim() != 2 || static_cast<std::size_t>(array.shape(1)) != updates)
    throw ConfigError(std::string(name) + " must have shape (rows, " + std::to_string(updates) +
                      ")");
  const auto weights = flat_span<const std::int64_t>(name, array.attr("reshape")(-1));
  std::vector<std::vector<std::int64_t>> rows;
  for (std::size_t r = 0; r < static_cast<std::size_t>(array.shape(0)); ++r) {
    const auto row = weights.subspan(r * updates, updates);
    rows.emplace_back(row.begin(), row.end());
  }
  return {std::move(rows), updates};
}

std::vector<double> to_doubles(const char* name, py::handle object, std::size_t count) {
  const auto values = flat_span<const double>(name, object);
  if (values.size() != count)
    throw ConfigError(std::string(name) + " must have " + std::to_string(count) +
                      " elements, got " + std::to_string(values.size()));
  return {values.begin(), values.end()};
}

py::array to_array(const std::vector<double>& values) {
  return py::array_t<double>(static_cast<py::ssize_t>(values.size()), values.data());
}

// A square matrix, row-major.
py::array to_matrix(const std::vector<double>& values, std::size_t rows) {
  const auto side = static_cast<py::ssize_t>(rows);
  return py::array_t<double>({side, side}, values.data());
}

std::size_t rows_of(const char* name, py::handle object) {
  const py::array array = as_array(name, object);
  if (array.ndim() != 2 || array.shape(0) != array.shape(1))
    throw ConfigError(std::string(name) + " must be a square matrix");
  return static_cast<std::size_t>(array.shape(0));
}

Gram to_gram(py::handle object) {
  const std::size_t rows = rows_of("gram", object);
  return {rows, to_doubles("gram", object.attr("reshape")(-1), rows * rows)};
}

// --- passes ---------------------------------------------------------------------------

// The set with another one's tensors as one more update.
UpdateSnapshot with_center(const BoundSnapshot& snapshot, TensorData center) {
  UpdateSnapshot set = snapshot.set;
  set.updates.push_back(std::make_shared<const CommittedUpdate>(borrow_update(
      snapshot.layout(), "center", center, nullptr, snapshot.threads(), Screening::magnitudes)));
  set.shares.emplace_back(1);
  return set;
}

py::array gram(const BoundSnapshot& snapshot, py::object center) {
  Gram gram{};
  if (center.is_none()) {
    py::gil_scoped_release release;
    const FloatEnvironment exact;
    gram = gram_of(snapshot.layout(), snapshot.set, snapshot.threads(), snapshot.device());
  } else {
    const TensorArrays tensors(snapshot.layout(), center);
    py::gil_scoped_release release;
    const FloatEnvironment exact;
    const UpdateSnapshot set = with_center(snapshot, tensors.pointers());
    if (shrinks_of(set).back() != 1)
      throw ConfigError("the center holds values of 2**448 or more, too large for distances");
    gram = gram_of(snapshot.layout(), set, snapshot.threads(), snapshot.device());
  }
  return to_matrix(gram.values, gram.rows);
}

py::array shrinks(const BoundSnapshot& snapshot) {
  const std::vector<double> found = shrinks_of(snapshot.set);
  return py::array_t<double>(static_cast<py::ssize_t>(found.size()), found.data());
}

py::array norms(const BoundSnapshot& snapshot) {
  std::vector<double> found;
  {
    py::gil_scoped_release release;
    const FloatEnvironment exact;
    found = norms_of(snapshot.layout(), snapshot.set, snapshot.threads());
  }
  return to_array(found);
}

// Updates whose weight is zero left out.
UpdateSnapshot weighted(const UpdateSnapshot& set, std::span<const std::int64_t> weights,
                        std::span<const double> gains, std::uint64_t total) {
  UpdateSnapshot chosen{{}, {}, total};
  for (std::size_t i = 0; i < set.updates.size(); ++i) {
    if (weights[i] == 0 || gains[i] == 0) continue;
    chosen.updates.push_back(set.updates[i]);
    chosen.shares.emplace_back(weights[i], gains[i]);
  }
  return chosen;
}

// How much each update counts in one group: weights and gains over a total.
struct Portions {
  Portions(const char* name, py::handle object, std::size_t count) {
    const auto given = flat_span<const std::int64_t>(name, object);
    if (given.size() != count)
      throw ConfigError(std::string(name) + " must have " + std::to_string(count) + " elements");
    for (const std::int64_t weight : given)
      if (weight < 0 || weight > kMaxWeight)
        throw ConfigError(std::string(name) + " must be 0 to 2**31-1");
    weights.assign(given.begin(), given.end());
  }
  std::vector<std::int64_t> weights;
};

py::list combine(const BoundSnapshot& snapshot, py::object weights, py::object gains,
                 py::object total, py::object counts, py::object count_total, py::object center) {
  std::optional<TensorArrays> tensors;
  if (!center.is_none()) tensors.emplace(snapshot.layout(), center);
  const std::size_t n = snapshot.set.updates.size() + (tensors ? 1 : 0);
  const Portions floats("weights", weights, n);
  const Portions integers("counts", counts, n);
  const std::vector<double> factors = to_doubles("gains", gains, n);
  for (const double factor : factors)
    if (!(factor >= 0 && factor <= 1)) throw ConfigError("gains must be 0 to 1");
  const auto float_total = to_integer<std::uint64_t>("total", total, 1, kMaxTotalWeight);
  const auto integer_total =
      to_integer<std::uint64_t>("count_total", count_total, 1, kMaxTotalWeight);
  return new_tensors(snapshot, [&](MutableTensorData places) {
    const UpdateSnapshot set = tensors ? with_center(snapshot, tensors->pointers()) : snapshot.set;
    const MeanWriter writer(snapshot.layout(), places);
    const std::vector<double> ones(n, 1.0);
    const UpdateSnapshot chosen = weighted(set, floats.weights, factors, float_total);
    if (snapshot.device() != nullptr)
      take_float_mean_on(*snapshot.device(), snapshot.layout(), chosen, snapshot.threads(), writer);
    else
      take_float_mean(snapshot.layout(), chosen, snapshot.threads(), writer);
    take_integer_mean(snapshot.layout(), weighted(set, integers.weights, ones, integer_total),
                      snapshot.threads(), writer);
  });
}

py::list select(const BoundSnapshot& snapshot, py::object index) {
  const auto chosen = to_integer<std::size_t>("index", index);
  return new_tensors(snapshot, [&](MutableTensorData places) {
    take_update(snapshot.layout(), snapshot.set, chosen, snapshot.threads(), places);
  });
}

py::list order(const BoundSnapshot& snapshot, py::object rows, OrderKind kind, std::size_t first,
               std::size_t kept) {
  const RowMix mix = to_rows("rows", rows, snapshot.set.updates.size());
  return new_tensors(snapshot, [&](MutableTensorData places) {
    take_order(snapshot.layout(), snapshot.set, mix, {kind, first, kept}, snapshot.threads(),
               snapshot.device(), places);
  });
}

py::tuple site_names(const BoundSnapshot& snapshot) {
  return py::tuple(py::cast(snapshot.set.sites()));
}

py::tuple weights_of(const BoundSnapshot& snapshot) {
  std::vector<std::int64_t> weights;
  for (const Share& share : snapshot.set.shares) weights.push_back(share.weight);
  return py::tuple(py::cast(weights));
}

py::tuple gains_of(const BoundSnapshot& snapshot) {
  std::vector<double> gains;
  for (const Share& share : snapshot.set.shares) gains.push_back(share.gain);
  return py::tuple(py::cast(gains));
}

void register_passes(py::module_& module) {
  py::class_<BoundSnapshot>(module, "UpdateSnapshot", py::is_final())
      .def(py::init(&take_snapshot), py::arg("aggregator"), py::keep_alive<1, 2>())
      .def_property_readonly("sites", &site_names)
      .def_property_readonly("weights", &weights_of)
      .def_property_readonly("gains", &gains_of)
      .def("gram", &gram, py::kw_only(), py::arg("center"))
      .def_property_readonly("shrinks", &shrinks)
      .def("norms", &norms)
      .def("combine", &combine, py::kw_only(), py::arg("weights"), py::arg("gains"),
           py::arg("total"), py::arg("counts"), py::arg("count_total"), py::arg("center"))
      .def("select", &select, py::arg("index"))
      .def(
          "median",
          [](const BoundSnapshot& snapshot, py::object rows) {
            return order(snapshot, std::move(rows), OrderKind::median, 0, 1);
          },
          py::arg("rows"))
      .def(
          "middle",
          [](const BoundSnapshot& snapshot, py::object rows, py::object first, py::object kept) {
            return order(snapshot, std::move(rows), OrderKind::middle,
                         to_integer<std::size_t>("first", first),
                         to_integer<std::size_t>("kept", kept));
          },
          py::arg("rows"), py::kw_only(), py::arg("first"), py::arg("kept"))
      .def(
          "nearest",
          [](const BoundSnapshot& snapshot, py::object rows, py::object kept) {
            return order(snapshot, std::move(rows), OrderKind::nearest, 0,
                         to_integer<std::size_t>("kept", kept));
          },
          py::arg("rows"), py::kw_only(), py::arg("kept"));
}

// --- distances ------------------------------------------------------------------------

py::array mix_products(py::object matrix, py::object rows) {
  const Gram gram = to_gram(matrix);
  const Gram mixed = mixed_gram(gram, to_rows("rows", rows, gram.rows));
  return to_matrix(mixed.values, mixed.rows);
}

py::array distances(py::object matrix) {
  const Gram gram = to_gram(matrix);
  return to_matrix(squared_distances(gram), gram.rows);
}

struct Distances {
  explicit Distances(py::handle object)
      : rows(rows_of("distances", object)),
        squares(to_doubles("distances", object.attr("reshape")(-1), rows * rows)) {}
  std::size_t rows;
  std::vector<double> squares;
};

py::array scores(py::object matrix, py::object neighbors) {
  const Distances given(matrix);
  const auto count = to_integer<std::size_t>("neighbors", neighbors);
  return to_array(krum_scores(given.squares, given.rows, count));
}

std::vector<std::size_t> select_bulyan(py::object matrix, py::object byzantine, py::object count) {
  const Distances given(matrix);
  return bulyan_selection(given.squares, given.rows,
                          to_integer<std::size_t>("byzantine", byzantine),
                          to_integer<std::size_t>("count", count));
}

std::vector<std::vector<std::size_t>> select_nearest(py::object matrix, py::object count) {
  const Distances given(matrix);
  return nearest_rows(given.squares, given.rows, to_integer<std::size_t>("count", count));
}

py::array median_factors(py::object matrix, py::object weights, py::object iterations,
                         double smoothing) {
  const Gram gram = to_gram(matrix);
  return to_array(weiszfeld_factors(gram, to_doubles("weights", weights, gram.rows),
                                    to_integer<std::size_t>("iterations", iterations), smoothing));
}

py::array clipped_factors(py::object matrix, py::object rows, py::object iterations,
                          double radius) {
  const Gram gram = to_gram(matrix);
  return to_array(clipping_factors(gram, to_integer<std::size_t>("rows", rows, 1, gram.rows),
                                   to_integer<std::size_t>("iterations", iterations), radius));
}

}  // namespace

void register_rules(py::module_& module) {
  register_passes(module);
  module.def("mixed_gram", &mix_products, py::arg("gram"), py::arg("rows"));
  module.def("squared_distances", &distances, py::arg("gram"));
  module.def("krum_scores", &scores, py::arg("distances"), py::kw_only(), py::arg("neighbors"));
  module.def("bulyan_selection", &select_bulyan, py::arg("distances"), py::kw_only(),
             py::arg("byzantine"), py::arg("count"));
  module.def("nearest_rows", &select_nearest, py::arg("distances"), py::kw_only(),
             py::arg("count"));
  module.def("weiszfeld_factors", &median_factors, py::arg("gram"), py::kw_only(),
             py::arg("weights"), py::arg("iterations"), py::arg("smoothing"));
  module.def("clipping_factors", &clipped_factors, py::arg("gram"), py::kw_only(), py::arg("rows"),
             py::arg("iterations"), py::arg("radius"));
}

}  // namespace veilsum
