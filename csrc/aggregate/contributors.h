// Who takes part in an aggregate, with which weight, and who is just arriving.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace veilsum {

// Whose aggregate it is.
struct Contribution {
  std::vector<std::string> sites;  // sorted bytewise
  std::uint64_t total_weight;
};

// How much an update counts. A gain multiplies floating-point values alone, and not the weight
// that the sum is divided by: the mean is sum(weight * gain * x) / sum(weight).
struct Share {
  Share(std::int64_t share_weight, double share_gain = 1)
      : weight(share_weight), gain(share_gain) {}

  // weight * gain * 2^exponent, rounded once.
  double factor(int exponent) const;

  std::int64_t weight;  // 1 .. 2^31-1
  double gain;          // 2^-32 .. 1: what is proven for a gain of 1 holds for smaller ones
};

class Contributors {
 public:
  class Arrival;

  explicit Contributors(std::uint64_t max_total_weight) : max_total_weight_(max_total_weight) {}

  // Guards the members below, and whatever their owner changes together with them.
  [[nodiscard]] std::unique_lock<std::mutex> lock() const { return std::unique_lock(mutex_); }

  // With the lock held.
  Contribution counted() const;
  std::uint64_t total_weight() const { return total_weight_; }
  void forget(const std::string& site);  // one that counts

 private:
  const std::uint64_t max_total_weight_;
  mutable std::mutex mutex_;
  std::set<std::string> arriving_;
  std::map<std::string, std::int64_t> weights_;
  std::uint64_t total_weight_ = 0;
  std::uint64_t arriving_weight_ = 0;
};

// A site whose update is being looked at, so that it cannot arrive twice at once and so that
// the bound on the total weight holds for what is under way too. It leaves with the object
// unless it was counted.
class Contributors::Arrival {
 public:
  // Throws PeerError if the site is there already, weight or gain are out of range or a bound
  // is passed.
  Arrival(Contributors& contributors, const std::string& site, Share share);
  ~Arrival();
  Arrival(const Arrival&) = delete;
  Arrival& operator=(const Arrival&) = delete;

  const std::string& site() const { return site_; }
  Share share() const { return share_; }
  // With the lock held.
  void count();

 private:
  void leave();
  void require_room() const;

  Contributors& all_;
  const std::string site_;
  const Share share_;
  bool counted_ = false;
};

}  // namespace veilsum
