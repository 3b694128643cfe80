// The committed updates of a round: what every rule is a function of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "aggregate/contributors.h"
#include "aggregate/spool.h"
#include "aggregate/update_reader.h"
#include "codec/layout.h"

namespace veilsum {

// Keeps alive what it stands for. Null: nobody does, so a copy is needed.
using Owner = std::shared_ptr<const void>;

// Bytes of a file.
struct FilePlace {
  std::uint64_t begin;
  std::uint64_t size;
};

// One site's update, screened and kept.
struct CommittedUpdate {
  std::string site;
  Share share;
  Owner owner;                           // of memory that is not ours
  std::vector<const std::byte*> places;  // of tensors that are not ours
  StoredBytes bytes;
  std::vector<Screened> tiles;  // of group 1
  std::unique_ptr<UpdateReader> values;

  // What was screened holds only if tensors that are not ours have not been changed since.
  bool may_have_changed() const { return !places.empty(); }
};

// Throws the ConfigError for tensors that were changed after they had been screened.
[[noreturn]] void refuse_changed();

// The set at one moment, sorted bytewise by site. It stays what it is while others come and go.
struct UpdateSnapshot {
  std::vector<std::shared_ptr<const CommittedUpdate>> updates;
  std::vector<Share> shares;  // one per update; their own, unless a rule gives them others
  std::uint64_t total_weight;

  std::vector<std::string> sites() const;
  // Lets go of what a walk over spooled updates has read.
  void release_pages() const;
  // Tiles after which a walk does that: some 32 MiB of files, whatever the number of updates.
  std::size_t release_tiles() const;
};

// Screens tensors and keeps references to them. Throws as UpdateReader::screen and read.
CommittedUpdate borrow_update(const Layout& layout, const std::string& site, TensorData tensors,
                              Owner owner, unsigned threads, Screening screening);

// The same of chunks, whose bytes nobody changes. Throws as check_update too.
CommittedUpdate borrow_chunks(const Layout& layout, const std::string& site,
                              std::span<const ByteSpan> chunks, const UpdateForm& form, Owner owner,
                              unsigned threads, Screening screening);

// add_*() keeps an update as it is, in memory or in a file of the spool directory.
//
// All members may be called from several threads. A call that throws has changed nothing.
class UpdateSet {
 public:
  // `spool`: a directory, or "" to keep updates in memory. `layout` must outlive the set. Throws
  // ConfigError if threads is 0.
  UpdateSet(const Layout& layout, unsigned threads, std::string spool, Screening screening);

  // Throws PeerError if the site is there already, weight or gain are out of range or a value is
  // not finite; ConfigError if there is no room to keep the update.
  //
  // With an `owner`, who keeps the memory alive, tensors are not copied (unless there is a
  // spool). If they are changed all the same, passes over the set refuse what could overflow.
  void add_tensors(const std::string& site, Share share, TensorData tensors, Owner owner);
  // The same, and DecodeError as check_update. With an `owner`, who promises that the bytes
  // never change, they are not copied.
  void add_chunks(const std::string& site, Share share, std::span<const ByteSpan> chunks,
                  const UpdateForm& form, Owner owner);

  // The same for chunks that lie in a file, one at each place, in order: they are read where they
  // are. Nobody changes them there; the file may lose its name. Throws ConfigError if it cannot be
  // mapped.
  void add_file(const std::string& site, Share share, int file, std::span<const FilePlace> places,
                const UpdateForm& form);

  // An update that was screened and kept elsewhere: what `make` returns. Throws as make.
  void add(const std::string& site, Share share,
           const std::function<CommittedUpdate(Screening)>& make);

  // Throws ConfigError if the site has no update.
  void remove(const std::string& site);

  Contribution contribution() const;
  UpdateSnapshot snapshot() const;

 private:
  CommittedUpdate keep(const std::string& site, TensorData tensors) const;
  CommittedUpdate keep(const std::string& site, std::span<const ByteSpan> chunks,
                       const UpdateForm& form) const;
  CommittedUpdate screened(const std::string& site, StoredBytes kept,
                           std::span<const FilePlace> places, const UpdateForm& form) const;
  void commit(Contributors::Arrival& arrival, CommittedUpdate update);

  const Layout& layout_;
  const unsigned threads_;
  const std::string spool_;
  const Screening screening_;
  Contributors contributors_;
  std::map<std::string, std::shared_ptr<const CommittedUpdate>> updates_;  // under its lock
};

// Screens every tile of an update. Throws as UpdateReader::screen and read.
std::vector<Screened> screen_update(const Layout& layout, const UpdateReader& values,
                                    const std::string& site, unsigned threads, Screening screening);

}  // namespace veilsum
