// The exact weighted mean of plain updates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "aggregate/spool.h"
#include "aggregate/update_reader.h"
#include "base/parallel.h"
#include "codec/layout.h"

namespace veilsum {

struct MeanSettings {
  unsigned threads;
  std::string spool;                         // directory; "" keeps updates in memory
  double streaming_max_abs;                  // 0: not streaming
  std::uint64_t streaming_max_total_weight;  // not looked at unless streaming
};

// Keeps alive what it stands for. Null: nobody does, so a copy is needed.
using Owner = std::shared_ptr<const void>;

// Sums are integers, so the result is a function of the set of (site, update, weight):
// neither the order of arrival nor chunks, threads or the instruction set can show in it.
//
// Spool discipline: add_*() keeps an update as it is, finish() makes one pass over all of
// them. Each tile of kTile coordinates has a scale of its own, from the maxima and weights
// of the set. Streaming discipline: the scale follows from the declared bounds alone, add_*()
// sums at once and keeps nothing.
//
// All members may be called from several threads. A call that throws has changed nothing.
class MeanAggregator {
 public:
  // Throws ConfigError if the streaming bounds are out of range.
  MeanAggregator(Layout layout, MeanSettings settings);

  // Throws PeerError if the site is there already, the weight is not 1 .. 2^31-1, a value is
  // not finite or a bound is passed; ConfigError if there is no room to keep the update.
  //
  // With an `owner`, who keeps the memory alive, tensors are not copied (unless there is a
  // spool). If they are changed all the same, finish() refuses what could overflow.
  void add_tensors(const std::string& site, std::int64_t weight, TensorData tensors, Owner owner);
  // The same, and DecodeError as check_update. With an `owner`, who promises that the bytes
  // never change, they are not copied.
  void add_chunks(const std::string& site, std::int64_t weight, std::span<const ByteSpan> chunks,
                  const UpdateForm& form, Owner owner);

  // Forgets a committed update. Throws ConfigError if there is none, or when streaming.
  void remove(const std::string& site);

  std::vector<std::string> sites() const;  // sorted bytewise
  std::uint64_t total_weight() const;
  const Layout& layout() const { return layout_; }

  // Whose mean it is.
  struct Finished {
    std::vector<std::string> sites;  // sorted bytewise
    std::uint64_t total_weight;
  };

  // Writes the mean of each tensor, rounded once to its dtype. Throws ConfigError if nothing
  // was added.
  Finished finish(MutableTensorData tensors) const;

 private:
  struct Committed {
    std::string site;
    std::int64_t weight;
    Owner owner;                           // of memory that is not ours
    std::vector<const std::byte*> places;  // of tensors that are not ours
    StoredBytes bytes;
    std::vector<double> tile_max;  // of group 1
    std::unique_ptr<UpdateReader> values;
  };
  using Set = std::vector<std::shared_ptr<const Committed>>;
  class Arrival;

  bool streaming() const { return settings_.streaming_max_abs > 0; }
  // Calls body(index, tile) for the tiles of a group, on several threads.
  template <class Body>
  void for_each_tile(int group, const Body& body) const {
    parallel_for(layout_.group_size(group), kTile, settings_.threads, [&](const Range& range) {
      body(range.index, Tile{range.begin, range.end - range.begin});
    });
  }
  std::vector<double> screen(const UpdateReader& values, const std::string& site) const;
  Committed keep(const std::string& site, TensorData tensors) const;
  Committed keep(const std::string& site, std::span<const ByteSpan> chunks,
                 const UpdateForm& form) const;
  Committed borrow(const std::string& site, TensorData tensors, Owner owner) const;
  Committed borrow(const std::string& site, std::span<const ByteSpan> chunks,
                   const UpdateForm& form, Owner owner) const;
  void commit(Arrival& arrival, Committed update);
  std::size_t tiles(int group) const;
  void sum_tile(const UpdateReader& values, int group, const Tile& tile, std::int64_t weight);
  void stream(Arrival& arrival, std::int64_t weight, const UpdateReader& values);
  void require_bounds(const std::string& site, const std::vector<double>& tile_max) const;
  int tile_exponent(const Set& set, std::size_t tile) const;
  void sum_floats(const Set& set, std::size_t index, const Tile& tile, int exponent,
                  std::uint64_t* sums) const;
  void finish_floats(const Set& set, std::uint64_t total, MutableTensorData tensors) const;
  void finish_integers(const Set& set, std::uint64_t total, MutableTensorData tensors) const;
  Finished finish_streamed(MutableTensorData tensors) const;
  Finished counted() const;
  void write_floats(const Tile& tile, const std::uint64_t* sums, int exponent, std::uint64_t total,
                    MutableTensorData tensors) const;
  void write_integers(const Tile& tile, const __int128* sums, std::uint64_t total,
                      MutableTensorData tensors) const;

  const Layout layout_;
  const MeanSettings settings_;
  const int streaming_exponent_;

  mutable std::mutex mutex_;  // guards what follows
  std::set<std::string> arriving_;
  std::map<std::string, std::int64_t> weights_;
  std::map<std::string, std::shared_ptr<const Committed>> updates_;  // empty when streaming
  std::uint64_t total_weight_ = 0;
  std::uint64_t arriving_weight_ = 0;
  std::vector<std::uint64_t> float_sums_;  // empty unless streaming
  std::vector<__int128> integer_sums_;
};

}  // namespace veilsum
