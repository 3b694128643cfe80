#include "privacy/private_mean.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "aggregate/scale.h"
#include "aggregate/tiles.h"
#include "aggregate/write_means.h"
#include "base/error.h"
#include "base/float_environment.h"
#include "kernels/dispatch.h"
#include "privacy/discrete_gaussian.h"
#include "privacy/noise_words.h"

namespace veilsum {
namespace {

// No tile has this number: a layout has at most 2^40 coordinates.
constexpr std::uint32_t kCountStream = 0xFFFFFFFF;

Layout require_floats(Layout layout) {
  for (const Tensor& tensor : layout.tensors())
    if (!is_floating(tensor.dtype))
      throw ConfigError(
          "tensor '" + tensor.name + "' holds integers, which a private mean cannot clip",
          "leave counters out of the update");
  return layout;
}

// Sum of squares of an update, tiles in order, and from it what the update is multiplied by. An
// update whose norm is beyond double precision counts as zero.
double clip_gain(const CommittedUpdate& update, double clip) {
  double squares = 0;
  for (const Screened& tile : update.tiles) squares += tile.squares;
  const double norm = norm_above(squares);
  return norm > clip ? clip / norm : 1.0;
}

std::vector<double> clip_gains(const UpdateSnapshot& set, double clip) {
  std::vector<double> gains;
  for (const auto& update : set.updates) gains.push_back(clip_gain(*update, clip));
  return gains;
}

// The values are widened first, because the products of codes with a rounded multiplier would
// be off by more than half a unit.
template <class Value, class Add>
void sum_clipped(const UpdateSnapshot& set, std::span<const double> gains, const Tile& tile,
                 int exponent, std::uint64_t* sums, const Add& add) {
  std::array<Value, kTile> values;
  for (std::size_t k = 0; k < gains.size(); ++k) {
    set.updates[k]->values->values(tile, std::span<Value>(values.data(), tile.count));
    add(values.data(), tile.count, std::ldexp(gains[k], exponent), sums);
  }
}

void add_noise(const Layout& layout, const Tile& tile, std::uint64_t sigma, NoiseWords& words,
               std::uint64_t* sums) {
  for_each_part(layout, kFloatGroup, tile.first, tile.count, [&](const TensorPart& part) {
    for (std::size_t i = part.offset; i < part.offset + part.count; ++i)
      sums[i] += static_cast<std::uint64_t>(sample_discrete_gaussian(sigma, words));
  });
}

// Every site counts alike, so that none can move the sum further than the clip.
void require_equal_share(const std::string& site, Share share) {
  if (share.weight != 1 || share.gain != 1)
    throw PeerError(site, "has weight " + std::to_string(share.weight) + " and gain " +
                              std::to_string(share.gain) + ", a private mean counts all alike");
}

[[noreturn]] void refuse_taken() {
  throw ConfigError("this private mean was taken already",
                    "a second result would cost privacy that nobody accounted for: make a new "
                    "aggregator for every round");
}

bool has_doubles(const Layout& layout) {
  return std::ranges::any_of(layout.tensors(),
                             [](const Tensor& tensor) { return tensor.dtype == DType::f64; });
}

}  // namespace

PrivateMean::PrivateMean(Layout layout, PrivateMeanSettings settings)
    : layout_(require_floats(std::move(layout))),
      settings_(std::move(settings)),
      grid_(noise_grid(settings_.privacy, layout_.group_size(kFloatGroup))),
      updates_(layout_, settings_.threads, settings_.spool, Screening::squares) {
  if (settings_.denominator > kMaxTotalWeight)
    throw ConfigError("denominator must be below 2**53, got " +
                      std::to_string(settings_.denominator));
  if (!(settings_.count_noise == 0 ||
        (settings_.count_noise >= 0x1p-9 && settings_.count_noise <= 0x1p20)))
    throw ConfigError("count_noise must be 1/512 to 2**20, got " +
                      std::to_string(settings_.count_noise));
}

void PrivateMean::require_open() const {
  const std::lock_guard lock(mutex_);
  if (taken_) refuse_taken();
}

void PrivateMean::add_tensors(const std::string& site, Share share, TensorData tensors) {
  require_equal_share(site, share);
  require_open();
  updates_.add_tensors(site, share, tensors, nullptr);
}

void PrivateMean::add_chunks(const std::string& site, Share share, std::span<const ByteSpan> chunks,
                             const UpdateForm& form, Owner owner) {
  require_equal_share(site, share);
  require_open();
  updates_.add_chunks(site, share, chunks, form, std::move(owner));
}

void PrivateMean::remove(const std::string& site) {
  require_open();
  updates_.remove(site);
}

std::vector<std::string> PrivateMean::sites() const { return updates_.contribution().sites; }

// Taken before anything is computed, and for good: a sink that fails half-way has shown some
// of the noise to the caller.
UpdateSnapshot PrivateMean::close() {
  const std::lock_guard lock(mutex_);
  if (taken_) refuse_taken();
  UpdateSnapshot set = updates_.snapshot();
  require_updates(set.total_weight);
  taken_ = true;
  return set;
}

// Each update adds +1 or -1, one that is left out nothing, so the count's sensitivity is 1. Sigma
// of twice the count's noise is made an integer of 2^29 units or more, like that of the sum.
double PrivateMean::noisy_balance(std::span<const double> gains,
                                  std::span<const std::byte> key) const {
  const double multiplier = 2 * settings_.count_noise;
  const int exponent = 30 - exponent_above(multiplier);
  const auto sigma = static_cast<std::uint64_t>(std::ceil(std::ldexp(multiplier, exponent)));
  std::int64_t balance = 0;
  for (const double gain : gains) balance += gain == 1 ? 1 : -1;
  NoiseWords words(key, kCountStream);
  const std::int64_t noisy =
      balance * (std::int64_t{1} << exponent) + sample_discrete_gaussian(sigma, words);
  return std::ldexp(static_cast<double>(noisy), -exponent) / 2;
}

void PrivateMean::sum_tile(const UpdateSnapshot& set, std::span<const double> gains,
                           const Tile& tile, std::uint64_t* sums) const {
  const CodecKernels& codec = kernels().codec;
  if (has_doubles(layout_))
    sum_clipped<double>(set, gains, tile, grid_.exponent, sums, codec.add_f64);
  else
    sum_clipped<float>(set, gains, tile, grid_.exponent, sums, codec.add_f32);
}

PrivateContribution PrivateMean::finish(const MeanSink& sink, std::span<const std::byte> key) {
  if (key.size() != kMaskKeyBytes)
    throw ConfigError("key must have 32 bytes, got " + std::to_string(key.size()));
  const FloatEnvironment exact;
  const UpdateSnapshot set = close();
  const std::vector<double> gains = clip_gains(set, settings_.privacy.clip);
  const std::uint64_t denominator =
      settings_.denominator == 0 ? set.updates.size() : settings_.denominator;
  for_each_tile(layout_, kFloatGroup, settings_.threads, [&](std::size_t index, const Tile& tile) {
    std::array<std::uint64_t, kTile> sums{};
    sum_tile(set, gains, tile, sums.data());
    NoiseWords words(key, static_cast<std::uint32_t>(index));
    add_noise(layout_, tile, grid_.sigma, words, sums.data());
    sink.floats(tile, sums.data(), {grid_.exponent, denominator});
  });
  const double balance = settings_.count_noise == 0 ? 0 : noisy_balance(gains, key);
  return {set.sites(), denominator, balance};
}

}  // namespace veilsum
