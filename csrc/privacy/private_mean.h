// The mean of clipped updates, with noise: what leaves it is differentially private.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "aggregate/mean_sink.h"
#include "aggregate/update_set.h"
#include "codec/layout.h"
#include "privacy/noise_grid.h"

namespace veilsum {

struct PrivateMeanSettings {
  PrivacySettings privacy;
  std::uint64_t denominator;  // of the mean; 0 takes the number of sites
  double count_noise;         // sigma of the noise on the count of unclipped updates; 0: no count
  unsigned threads;
  std::string spool;  // directory; "" keeps updates in memory
};

// What is published beside the mean; all of it is private or public.
struct PrivateContribution {
  std::vector<std::string> sites;  // sorted bytewise
  std::uint64_t denominator;
  // (updates within the clip - updates beyond it) / 2 + noise; 0 without count_noise.
  double noisy_balance;
};

// mean = (sum of round(gain * x * 2^s) + noise) * 2^-s / denominator, gain = min(1, clip / |x|),
// the noise discrete Gaussian in units of the public grid (docs/privacy.md).
//
// Taken once: a second result would be a second look at the same data. All members may be called
// from several threads. A call that throws has changed nothing.
class PrivateMean {
 public:
  // Throws ConfigError if a setting is out of range or the layout has integer tensors.
  PrivateMean(Layout layout, PrivateMeanSettings settings);

  // Throw as UpdateSet's, PeerError if the share is not the one every site has, and ConfigError
  // once the mean was taken. Tensors are copied always: their norm must stay what it is.
  void add_tensors(const std::string& site, Share share, TensorData tensors);
  void add_chunks(const std::string& site, Share share, std::span<const ByteSpan> chunks,
                  const UpdateForm& form, Owner owner);
  void remove(const std::string& site);

  std::vector<std::string> sites() const;
  const Layout& layout() const { return layout_; }
  const NoiseGrid& grid() const { return grid_; }

  // `key`: 32 fresh bytes, used for nothing else. Throws ConfigError if nothing was added or the
  // mean was taken before.
  PrivateContribution finish(const MeanSink& sink, std::span<const std::byte> key);

 private:
  void require_open() const;
  UpdateSnapshot close();
  void sum_tile(const UpdateSnapshot& set, std::span<const double> gains, const Tile& tile,
                std::uint64_t* sums) const;
  double noisy_balance(std::span<const double> gains, std::span<const std::byte> key) const;

  const Layout layout_;
  const PrivateMeanSettings settings_;
  const NoiseGrid grid_;
  UpdateSet updates_;
  mutable std::mutex mutex_;  // guards taken_
  bool taken_ = false;
};

}  // namespace veilsum
