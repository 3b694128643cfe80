// The exact weighted mean of updates that are summed on arrival and forgotten.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "aggregate/contributors.h"
#include "aggregate/mean_sink.h"
#include "aggregate/update_set.h"
#include "codec/layout.h"
#include "device/device.h"
#include "device/device_mean.h"

namespace veilsum {

struct StreamingBounds {
  double max_abs;
  std::uint64_t max_total_weight;
};

// The scale follows from the declared bounds alone.
//
// Sums of floating-point tensors lie on a device, if there is one: 8 bytes per coordinate. Every
// update passes through it when it is added, and stays nowhere.
//
// All members may be called from several threads. A call that throws has changed nothing; but an
// error of the device, once it has begun to add, leaves sums that are part old and part new, and
// everything after that is refused with a DeviceError.
class StreamingMean {
 public:
  // `layout` must outlive the object. Throws ConfigError if a bound is out of range or threads
  // is 0, and DeviceError if sums do not fit the device.
  StreamingMean(const Layout& layout, unsigned threads, const StreamingBounds& bounds,
                DeviceOwner device = nullptr);

  // Throw PeerError if the site is there already, weight or gain are out of range, a value is
  // not finite or a bound is passed; DecodeError as check_update.
  void add_tensors(const std::string& site, Share share, TensorData tensors);
  void add_chunks(const std::string& site, Share share, std::span<const ByteSpan> chunks,
                  const UpdateForm& form);
  // Tensors whose floating-point ones lie on the device: they are read there.
  void add_resident(const std::string& site, Share share, TensorData tensors);

  Contribution contribution() const;

  // Hands the sums of every tile to the sink, or their means. Throws ConfigError if nothing was
  // added.
  Contribution finish(const MeanSink& sink) const;
  // Makes a step on the device, which has some of its arrays; `integers` takes group 2. Throws as
  // ServerStep::apply too.
  Contribution finish_step(const ServerStep& step, const MeanSink& integers) const;

 private:
  // Sums on a device, whole tiles of them.
  struct DeviceSums {
    DeviceSums(const DeviceOwner& on, const Layout& layout);
    const DeviceOwner device;
    const DeviceStream stream;
    const DeviceBuffer buffer;
  };

  void sum(Contributors::Arrival& arrival, const CommittedUpdate& update);
  void sum_tile(const UpdateReader& values, int group, const Tile& tile, Share share);
  void sum_on_host(Contributors::Arrival& arrival, const UpdateReader& values);
  void sum_on_device(Contributors::Arrival& arrival, const CommittedUpdate& update);
  void require_whole() const;
  KeptSums kept() const;
  void finish_integers(const MeanSink& sink, std::uint64_t total_weight) const;
  void require_bounds(const std::string& site, const std::vector<Screened>& tiles) const;

  const Layout& layout_;
  const unsigned threads_;
  const double max_abs_;
  const int exponent_;
  Contributors contributors_;
  // Under the lock of contributors_.
  std::vector<std::uint64_t> float_sums_;  // unless a device has them
  std::vector<__int128> integer_sums_;
  std::optional<DeviceSums> device_sums_;
  bool broken_ = false;  // sums are part old and part new
};

}  // namespace veilsum
