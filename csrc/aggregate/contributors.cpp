#include "aggregate/contributors.h"

#include "aggregate/scale.h"
#include "base/error.h"

namespace veilsum {

Contribution Contributors::counted() const {
  Contribution contribution{{}, total_weight_};
  for (const auto& [site, weight] : weights_) contribution.sites.push_back(site);
  return contribution;
}

void Contributors::forget(const std::string& site) {
  const auto found = weights_.find(site);
  total_weight_ -= static_cast<std::uint64_t>(found->second);
  weights_.erase(found);
}

Contributors::Arrival::Arrival(Contributors& contributors, const std::string& site,
                               std::int64_t weight)
    : all_(contributors), site_(site), weight_(weight) {
  if (weight < 1 || weight > kMaxWeight)
    throw PeerError(site, "has weight " + std::to_string(weight) + ", allowed is 1 to 2**31-1");
  const auto lock = all_.lock();
  if (all_.weights_.contains(site)) throw PeerError(site, "has already added an update");
  require_room();
  if (!all_.arriving_.insert(site).second)
    throw PeerError(site, "is adding an update in another thread");
  all_.arriving_weight_ += static_cast<std::uint64_t>(weight);
}

Contributors::Arrival::~Arrival() {
  if (counted_) return;
  const auto lock = all_.lock();
  leave();
}

// Allocates first: what follows cannot fail. The weight goes from one account to the other in
// one step, so that no other arrival sees it in both.
void Contributors::Arrival::count() {
  all_.weights_.emplace(site_, weight_);
  all_.total_weight_ += static_cast<std::uint64_t>(weight_);
  leave();
  counted_ = true;
}

void Contributors::Arrival::leave() {
  all_.arriving_.erase(site_);
  all_.arriving_weight_ -= static_cast<std::uint64_t>(weight_);
}

void Contributors::Arrival::require_room() const {
  const std::uint64_t total =
      all_.total_weight_ + all_.arriving_weight_ + static_cast<std::uint64_t>(weight_);
  if (total > all_.max_total_weight_)
    throw PeerError(site_, "has weight " + std::to_string(weight_) +
                               ", which passes the declared total weight of " +
                               std::to_string(all_.max_total_weight_));
  if (all_.weights_.size() + all_.arriving_.size() >= kMaxUpdates)
    throw PeerError(site_, "is one too many: a mean has at most 2**22 updates");
}

}  // namespace veilsum
