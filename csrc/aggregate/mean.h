// The exact weighted mean of plain updates.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "aggregate/streaming_mean.h"
#include "aggregate/update_set.h"
#include "codec/layout.h"
#include "device/device.h"
#include "optimize/server_step.h"

namespace veilsum {

struct MeanSettings {
  unsigned threads;
  std::string spool;                         // directory; "" keeps updates in memory
  double streaming_max_abs;                  // 0: not streaming
  std::uint64_t streaming_max_total_weight;  // not looked at unless streaming
  DeviceOwner device = {};                   // what sums floats; null: the CPU
};

// Sums are integers, so the result is a function of the set of (site, update, weight):
// neither the order of arrival nor chunks, threads or the instruction set can show in it.
//
// Spool discipline: add_*() keeps an update in an UpdateSet, finish() makes one pass over all of
// them. Streaming discipline: add_*() sums at once and keeps nothing.
//
// All members may be called from several threads. A call that throws has changed nothing.
class MeanAggregator {
 public:
  // Throws ConfigError if the streaming bounds are out of range or threads is 0.
  MeanAggregator(Layout layout, MeanSettings settings);

  // Throw as UpdateSet's or StreamingMean's.
  void add_tensors(const std::string& site, Share share, TensorData tensors, Owner owner);
  void add_chunks(const std::string& site, Share share, std::span<const ByteSpan> chunks,
                  const UpdateForm& form, Owner owner);

  // Throws as UpdateSet's, and ConfigError when streaming.
  void add_file(const std::string& site, Share share, int file, std::span<const FilePlace> places,
                const UpdateForm& form);

  // Tensors whose floating-point ones lie on the device of this aggregator, and stay there.
  void add_resident(const std::string& site, Share share, TensorData tensors, Owner owner);

  // Forgets a committed update. Throws ConfigError if there is none, or when streaming.
  void remove(const std::string& site);

  std::vector<std::string> sites() const;  // sorted bytewise
  std::uint64_t total_weight() const;
  const Layout& layout() const { return layout_; }
  const DeviceOwner& device() const { return device_; }
  unsigned threads() const { return threads_; }

  // The committed updates, for other rules than the mean. Throws ConfigError when streaming.
  UpdateSnapshot snapshot() const;

  // Writes the mean of each tensor, rounded once to its dtype. Throws ConfigError if nothing
  // was added.
  Contribution finish(MutableTensorData tensors) const;
  // Steps a model by the mean instead, in the same pass and with the same bits: on the host,
  // unless the device of this aggregator holds some of the step's arrays. Throws as
  // ServerStep::apply too, and ConfigError if the step is for another layout.
  Contribution finish_step(const ServerStep& step) const;

 private:
  Contribution contribution() const;
  Contribution take(const MeanSink& sink) const;

  const Layout layout_;
  const unsigned threads_;
  const DeviceOwner device_;
  // One of the two.
  std::optional<UpdateSet> updates_;
  std::optional<StreamingMean> streaming_;
};

}  // namespace veilsum
