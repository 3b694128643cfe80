#include "rules/selection.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace veilsum {
namespace {

// Other rows, nearest first.
std::vector<std::vector<std::size_t>> neighbors_in_order(const std::vector<double>& distances,
                                                         std::size_t rows) {
  std::vector<std::vector<std::size_t>> order(rows);
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < rows; ++j)
      if (j != i) order[i].push_back(j);
    const double* from = distances.data() + i * rows;
    std::stable_sort(order[i].begin(), order[i].end(),
                     [from](std::size_t a, std::size_t b) { return from[a] < from[b]; });
  }
  return order;
}

double nearest_sum(const double* distances, const std::vector<std::size_t>& order,
                   const std::vector<bool>& present, std::size_t count) {
  double sum = 0;
  for (const std::size_t j : order) {
    if (count == 0) break;
    if (!present[j]) continue;
    sum += distances[j];
    --count;
  }
  return sum;
}

// Squared distance of row i to the combination, whose inner products are `products`.
double distance_to(const Gram& gram, std::size_t i, const std::vector<double>& products,
                   double square) {
  return std::max(0.0, square - 2 * products[i] + gram.at(i, i));
}

// Inner products of every row with the combination.
std::vector<double> products_with(const Gram& gram, const std::vector<double>& factors) {
  std::vector<double> products(gram.rows);
  for (std::size_t i = 0; i < gram.rows; ++i)
    for (std::size_t j = 0; j < gram.rows; ++j) products[i] += gram.at(i, j) * factors[j];
  return products;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

void normalize(std::vector<double>& factors) {
  double sum = 0;
  for (const double factor : factors) sum += factor;
  for (double& factor : factors) factor /= sum;
}

}  // namespace

Gram mixed_gram(const Gram& gram, const RowMix& mix) {
  const std::size_t n = gram.rows;
  std::vector<double> half(mix.rows() * n);  // mix * gram
  for (std::size_t r = 0; r < mix.rows(); ++r)
    for (std::size_t i = 0; i < n; ++i)
      if (const auto weight = static_cast<double>(mix.weights[r][i]); weight != 0)
        for (std::size_t j = 0; j < n; ++j) half[r * n + j] += weight * gram.at(i, j);
  Gram mixed{mix.rows(), std::vector<double>(mix.rows() * mix.rows())};
  for (std::size_t r = 0; r < mix.rows(); ++r)
    for (std::size_t s = 0; s <= r; ++s) {
      double sum = 0;
      for (std::size_t j = 0; j < n; ++j)
        if (const auto weight = static_cast<double>(mix.weights[s][j]); weight != 0)
          sum += half[r * n + j] * weight;
      sum /= static_cast<double>(mix.totals[r]) * static_cast<double>(mix.totals[s]);
      mixed.values[r * mix.rows() + s] = mixed.values[s * mix.rows() + r] = sum;
    }
  return mixed;
}

std::vector<double> squared_distances(const Gram& gram) {
  std::vector<double> distances(gram.rows * gram.rows);
  for (std::size_t i = 0; i < gram.rows; ++i)
    for (std::size_t j = 0; j < gram.rows; ++j)
      if (i != j)
        distances[i * gram.rows + j] =
            std::max(0.0, (gram.at(i, i) + gram.at(j, j)) - 2 * gram.at(i, j));
  return distances;
}

std::vector<double> krum_scores(const std::vector<double>& distances, std::size_t rows,
                                std::size_t neighbors) {
  const auto order = neighbors_in_order(distances, rows);
  const std::vector<bool> present(rows, true);
  std::vector<double> scores(rows);
  for (std::size_t i = 0; i < rows; ++i)
    scores[i] = nearest_sum(distances.data() + i * rows, order[i], present, neighbors);
  return scores;
}

std::vector<std::size_t> bulyan_selection(const std::vector<double>& distances, std::size_t rows,
                                          std::size_t byzantine, std::size_t count) {
  const auto order = neighbors_in_order(distances, rows);
  std::vector<bool> present(rows, true);
  std::vector<std::size_t> selected;
  for (std::size_t left = rows; selected.size() < count && left > 0; --left) {
    const std::size_t neighbors = left > byzantine + 3 ? left - byzantine - 2 : 1;
    std::size_t best = rows;
    double best_score = 0;
    for (std::size_t i = 0; i < rows; ++i) {
      if (!present[i]) continue;
      const double score = nearest_sum(distances.data() + i * rows, order[i], present, neighbors);
      if (best == rows || score < best_score) {
        best = i;
        best_score = score;
      }
    }
    present[best] = false;
    selected.push_back(best);
  }
  return selected;
}

std::vector<std::vector<std::size_t>> nearest_rows(const std::vector<double>& distances,
                                                   std::size_t rows, std::size_t count) {
  auto order = neighbors_in_order(distances, rows);
  for (std::size_t i = 0; i < rows; ++i) {
    order[i].insert(order[i].begin(), i);
    order[i].resize(std::min(count, rows));
  }
  return order;
}

std::vector<double> weiszfeld_factors(const Gram& gram, const std::vector<double>& weights,
                                      std::size_t iterations, double smoothing) {
  std::vector<double> factors = weights;
  normalize(factors);
  for (std::size_t k = 0; k < iterations; ++k) {
    const std::vector<double> products = products_with(gram, factors);
    const double square = dot(factors, products);
    for (std::size_t i = 0; i < gram.rows; ++i) {
      const double distance = std::sqrt(distance_to(gram, i, products, square));
      factors[i] = weights[i] / std::max(smoothing, distance);
    }
    normalize(factors);
  }
  return factors;
}

std::vector<double> clipping_factors(const Gram& gram, std::size_t rows, std::size_t iterations,
                                     double radius) {
  std::vector<double> factors(gram.rows);
  if (gram.rows > rows) factors[rows] = 1;
  const auto count = static_cast<double>(rows);
  for (std::size_t k = 0; k < iterations; ++k) {
    const std::vector<double> products = products_with(gram, factors);
    const double square = dot(factors, products);
    std::vector<double> kept(rows);
    double all = 0;
    for (std::size_t i = 0; i < rows; ++i) {
      const double distance = std::sqrt(distance_to(gram, i, products, square));
      kept[i] = distance > radius ? radius / distance : 1;
      all += kept[i];
    }
    for (double& factor : factors) factor *= 1 - all / count;
    for (std::size_t i = 0; i < rows; ++i) factors[i] += kept[i] / count;
  }
  return factors;
}

}  // namespace veilsum
