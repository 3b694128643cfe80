#include "aggregate/mean.h"

#include <utility>

#include "aggregate/mean_pass.h"
#include "base/error.h"
#include "base/float_environment.h"
#include "device/device_mean.h"
#include "device/resident.h"

namespace veilsum {

MeanAggregator::MeanAggregator(Layout layout, MeanSettings settings)
    : layout_(std::move(layout)), threads_(settings.threads), device_(std::move(settings.device)) {
  if (settings.streaming_max_abs == 0)
    updates_.emplace(layout_, threads_, std::move(settings.spool), Screening::magnitudes);
  else
    streaming_.emplace(
        layout_, threads_,
        StreamingBounds{settings.streaming_max_abs, settings.streaming_max_total_weight}, device_);
}

void MeanAggregator::add_tensors(const std::string& site, Share share, TensorData tensors,
                                 Owner owner) {
  if (streaming_) return streaming_->add_tensors(site, share, tensors);
  updates_->add_tensors(site, share, tensors, std::move(owner));
}

void MeanAggregator::add_chunks(const std::string& site, Share share,
                                std::span<const ByteSpan> chunks, const UpdateForm& form,
                                Owner owner) {
  if (streaming_) return streaming_->add_chunks(site, share, chunks, form);
  updates_->add_chunks(site, share, chunks, form, std::move(owner));
}

void MeanAggregator::add_file(const std::string& site, Share share, int file,
                              std::span<const FilePlace> places, const UpdateForm& form) {
  if (streaming_)
    throw ConfigError("a streaming mean takes no update from a file",
                      "leave out `streaming`, or add its chunks");
  updates_->add_file(site, share, file, places, form);
}

void MeanAggregator::add_resident(const std::string& site, Share share, TensorData tensors,
                                  Owner owner) {
  if (device_ == nullptr)
    throw ConfigError("tensors of site '" + site + "' are on a device, and this aggregator is not",
                      "copy them to the host first");
  if (streaming_) return streaming_->add_resident(site, share, tensors);
  updates_->add(site, share, [&](Screening screening) {
    return borrow_resident(layout_, site, device_, tensors, std::move(owner), threads_, screening);
  });
}

void MeanAggregator::remove(const std::string& site) {
  if (streaming_)
    throw ConfigError("a streaming mean cannot forget site '" + site + "': it keeps no updates",
                      "leave out `streaming` if updates must be removable");
  updates_->remove(site);
}

UpdateSnapshot MeanAggregator::snapshot() const {
  if (streaming_)
    throw ConfigError("a streaming mean keeps no updates that a rule could be applied to",
                      "leave out `streaming`");
  return updates_->snapshot();
}

Contribution MeanAggregator::contribution() const {
  return streaming_ ? streaming_->contribution() : updates_->contribution();
}

std::vector<std::string> MeanAggregator::sites() const { return contribution().sites; }

std::uint64_t MeanAggregator::total_weight() const { return contribution().total_weight; }

Contribution MeanAggregator::take(const MeanSink& sink) const {
  if (streaming_) return streaming_->finish(sink);
  const FloatEnvironment exact;
  const UpdateSnapshot set = updates_->snapshot();
  if (device_ == nullptr) {
    take_mean(layout_, set, threads_, sink);
  } else {
    take_float_mean_on(*device_, layout_, set, threads_, sink);
    take_integer_mean(layout_, set, threads_, sink);
  }
  return {set.sites(), set.total_weight};
}

Contribution MeanAggregator::finish(MutableTensorData tensors) const {
  return take(MeanWriter(layout_, tensors));
}

// Where model and moments lie on the host, only means cross the bus. Where the device has some of
// them, the others go there.
Contribution MeanAggregator::finish_step(const ServerStep& step) const {
  const ModelStepper on_host(layout_, step);
  if (device_ == nullptr || !step.resident().any()) return take(on_host);
  if (streaming_) return streaming_->finish_step(step, on_host);
  const FloatEnvironment exact;
  const UpdateSnapshot set = updates_->snapshot();
  step_float_mean_on(*device_, layout_, set, threads_, step);
  take_integer_mean(layout_, set, threads_, on_host);
  return {set.sites(), set.total_weight};
}

}  // namespace veilsum
