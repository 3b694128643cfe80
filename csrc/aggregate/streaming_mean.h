// The exact weighted mean of updates that are summed on arrival and forgotten.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "aggregate/contributors.h"
#include "aggregate/mean_sink.h"
#include "aggregate/update_reader.h"
#include "codec/layout.h"

namespace veilsum {

struct StreamingBounds {
  double max_abs;
  std::uint64_t max_total_weight;
};

// The scale follows from the declared bounds alone.
//
// All members may be called from several threads. A call that throws has changed nothing.
class StreamingMean {
 public:
  // `layout` must outlive the object. Throws ConfigError if a bound is out of range or threads
  // is 0.
  StreamingMean(const Layout& layout, unsigned threads, const StreamingBounds& bounds);

  // Throw PeerError if the site is there already, weight or gain are out of range, a value is
  // not finite or a bound is passed; DecodeError as check_update.
  void add_tensors(const std::string& site, Share share, TensorData tensors);
  void add_chunks(const std::string& site, Share share, std::span<const ByteSpan> chunks,
                  const UpdateForm& form);

  Contribution contribution() const;

  // Hands the sums of every tile to the sink. Throws ConfigError if nothing was added.
  Contribution finish(const MeanSink& sink) const;

 private:
  void sum(Contributors::Arrival& arrival, const UpdateReader& values);
  void sum_tile(const UpdateReader& values, int group, const Tile& tile, Share share);
  void require_bounds(const std::string& site, const std::vector<Screened>& tiles) const;

  const Layout& layout_;
  const unsigned threads_;
  const double max_abs_;
  const int exponent_;
  Contributors contributors_;
  std::vector<std::uint64_t> float_sums_;  // under the lock of contributors_
  std::vector<__int128> integer_sums_;
};

}  // namespace veilsum
