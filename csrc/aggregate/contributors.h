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
  // Throws PeerError if the site is there already, the weight is not 1 .. 2^31-1 or a bound
  // is passed.
  Arrival(Contributors& contributors, const std::string& site, std::int64_t weight);
  ~Arrival();
  Arrival(const Arrival&) = delete;
  Arrival& operator=(const Arrival&) = delete;

  const std::string& site() const { return site_; }
  std::int64_t weight() const { return weight_; }
  // With the lock held.
  void count();

 private:
  void leave();
  void require_room() const;

  Contributors& all_;
  const std::string site_;
  const std::int64_t weight_;
  bool counted_ = false;
};

}  // namespace veilsum
