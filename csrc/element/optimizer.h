// One coordinate of a server optimizer's step (Reddi et al. 2021, algorithm 2; Hsu et al. 2019
// for momentum). Everything is computed in double, in the order written here; a stored moment is
// rounded once to its type T, and the step is taken with the stored values, so that a step is a
// function of what a state file holds.
#pragma once

#include <cstddef>
#include <cstdint>

#include "element/annotate.h"
#include "element/half.h"

namespace veilsum {

enum class OptimizerKind { fedavg, fedavgm, fedadagrad, fedadam, fedyogi };
inline constexpr std::size_t kOptimizerKinds = 5;

struct OptimizerRule {
  double learning_rate;
  double gain;  // multiplies the mean before anything else
  double beta1;
  double beta1_rest;  // 1 - beta1
  double beta2;
  double beta2_rest;
  double tau;
};

// One coordinate's moments; rules without one leave it alone.
template <class T>
struct Moments {
  T first;
  T second;
};

VS_FN double adaptive_change(double direction, double second, const OptimizerRule& rule) {
  return rule.learning_rate * direction / (__builtin_sqrt(second) + rule.tau);
}

// Each returns what is added to the model.

struct FedAvgStep {
  static constexpr bool kFirst = false;
  static constexpr bool kSecond = false;
  template <class T>
  VS_FN double change(double delta, Moments<T>&, const OptimizerRule& rule) {
    return rule.learning_rate * delta;
  }
};

struct FedAvgMStep {
  static constexpr bool kFirst = true;
  static constexpr bool kSecond = false;
  template <class T>
  VS_FN double change(double delta, Moments<T>& moments, const OptimizerRule& rule) {
    moments.first = static_cast<T>(rule.beta1 * static_cast<double>(moments.first) + delta);
    return rule.learning_rate * static_cast<double>(moments.first);
  }
};

struct FedAdagradStep {
  static constexpr bool kFirst = false;
  static constexpr bool kSecond = true;
  template <class T>
  VS_FN double change(double delta, Moments<T>& moments, const OptimizerRule& rule) {
    moments.second = static_cast<T>(static_cast<double>(moments.second) + delta * delta);
    return adaptive_change(delta, static_cast<double>(moments.second), rule);
  }
};

template <class T>
VS_FN void average_first(double delta, Moments<T>& moments, const OptimizerRule& rule) {
  moments.first =
      static_cast<T>(rule.beta1 * static_cast<double>(moments.first) + rule.beta1_rest * delta);
}

struct FedAdamStep {
  static constexpr bool kFirst = true;
  static constexpr bool kSecond = true;
  template <class T>
  VS_FN double change(double delta, Moments<T>& moments, const OptimizerRule& rule) {
    average_first(delta, moments, rule);
    moments.second = static_cast<T>(rule.beta2 * static_cast<double>(moments.second) +
                                    rule.beta2_rest * (delta * delta));
    return adaptive_change(static_cast<double>(moments.first), static_cast<double>(moments.second),
                           rule);
  }
};

struct FedYogiStep {
  static constexpr bool kFirst = true;
  static constexpr bool kSecond = true;
  template <class T>
  VS_FN double change(double delta, Moments<T>& moments, const OptimizerRule& rule) {
    average_first(delta, moments, rule);
    const double square = delta * delta;
    const double second = static_cast<double>(moments.second);
    const double step = rule.beta2_rest * square;
    // v - step * sign(v - square): a v that equals the square stays.
    const double signed_step = second > square ? -step : second < square ? step : 0.0;
    moments.second = static_cast<T>(second + signed_step);
    return adaptive_change(static_cast<double>(moments.first), static_cast<double>(moments.second),
                           rule);
  }
};

// The new value, not yet rounded to its format. `mean` is what the model's format holds of it.
template <class Step, class T>
VS_FN double stepped_value(double model, double mean, Moments<T>& moments,
                           const OptimizerRule& rule) {
  const double delta = mean * rule.gain;
  return model + Step::template change<T>(delta, moments, rule);
}

// --- how a new value is rounded ------------------------------------------------------------

struct ToNearest {
  VS_FN float narrow(double value) { return static_cast<float>(value); }
};

// The neighbour with an odd pattern, unless the value is a float. Magnitudes order like
// patterns, so the other neighbour is one pattern away. In integers, without branches.
struct ToOdd {
  VS_FN float narrow(double value) {
    const auto nearest = static_cast<float>(value);
    const auto back = static_cast<double>(nearest);
    const std::uint32_t bits = bits_of_float(nearest);
    const double magnitude = __builtin_fabs(value);
    const double back_magnitude = __builtin_fabs(back);
    const std::uint32_t even = ~bits & 1u;
    const std::uint32_t up = back_magnitude < magnitude ? even : 0u;
    const std::uint32_t down = back_magnitude > magnitude ? even : 0u;
    return float_of_bits(bits + up - down);
  }
};

struct Keep {
  VS_FN double narrow(double value) { return value; }
};

}  // namespace veilsum
