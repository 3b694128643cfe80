#include "aggregate/contributors.h"

#include "aggregate/scale.h"
#include "base/error.h"

namespace veilsum {
namespace {

constexpr double kMinGain = 0x1p-32;

}  // namespace

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

double Share::factor(int exponent) const { return scale_factor(weight, exponent) * gain; }

Contributors::Arrival::Arrival(Contributors& contributors, const std::string& site, Share share)
    : all_(contributors), site_(site), share_(share) {
  if (share.weight < 1 || share.weight > kMaxWeight)
    throw PeerError(site,
                    "has weight " + std::to_string(share.weight) + ", allowed is 1 to 2**31-1");
  if (!(share.gain >= kMinGain && share.gain <= 1))
    throw PeerError(site, "has gain " + std::to_string(share.gain) + ", allowed is 2**-32 to 1");
  const auto lock = all_.lock();
  if (all_.weights_.contains(site)) throw PeerError(site, "has already added an update");
  require_room();
  if (!all_.arriving_.insert(site).second)
    throw PeerError(site, "is adding an update in another thread");
  all_.arriving_weight_ += static_cast<std::uint64_t>(share.weight);
}

Contributors::Arrival::~Arrival() {
  if (counted_) return;
  const auto lock = all_.lock();
  leave();
}

// Allocates first: what follows cannot fail. The weight goes from one account to the other in
// one step, so that no other arrival sees it in both.
void Contributors::Arrival::count() {
  all_.weights_.emplace(site_, share_.weight);
  all_.total_weight_ += static_cast<std::uint64_t>(share_.weight);
  leave();
  counted_ = true;
}

void Contributors::Arrival::leave() {
  all_.arriving_.erase(site_);
  all_.arriving_weight_ -= static_cast<std::uint64_t>(share_.weight);
}

void Contributors::Arrival::require_room() const {
  const std::uint64_t total =
      all_.total_weight_ + all_.arriving_weight_ + static_cast<std::uint64_t>(share_.weight);
  if (total > all_.max_total_weight_)
    throw PeerError(site_, "has weight " + std::to_string(share_.weight) +
                               ", which passes the declared total weight of " +
                               std::to_string(all_.max_total_weight_));
  if (all_.weights_.size() + all_.arriving_.size() >= kMaxUpdates)
    throw PeerError(site_, "is one too many: a mean has at most 2**22 updates");
}

}  // namespace veilsum
