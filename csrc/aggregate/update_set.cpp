#include "aggregate/update_set.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "aggregate/scale.h"
#include "aggregate/tiles.h"
#include "base/error.h"
#include "base/float_environment.h"
#include "device/resident.h"
#include "update/encode.h"

namespace veilsum {
namespace {

constexpr std::size_t kReleaseBytes = std::size_t{32} << 20;
constexpr std::size_t kMostReleaseTiles = 256;
constexpr std::uint64_t kMostFileBytes = std::uint64_t{1} << 48;

}  // namespace

void refuse_changed() {
  throw ConfigError("arrays were changed between add() and finish()",
                    "leave borrowed arrays alone until the result is taken, or have them copied");
}

std::vector<std::string> UpdateSnapshot::sites() const {
  std::vector<std::string> names;
  for (const auto& update : updates) names.push_back(update->site);
  return names;
}

void UpdateSnapshot::release_pages() const {
  for (const auto& update : updates) update->bytes.release_pages();
}

std::size_t UpdateSnapshot::release_tiles() const {
  std::size_t tiles = 1;
  std::size_t bytes = 1;
  for (const auto& update : updates) {
    tiles = std::max(tiles, update->tiles.size());
    bytes += update->bytes.bytes().size();
  }
  return std::clamp<std::size_t>(kReleaseBytes / (bytes / tiles + 1), 1, kMostReleaseTiles);
}

std::vector<Screened> screen_update(const Layout& layout, const UpdateReader& values,
                                    const std::string& site, unsigned threads,
                                    Screening screening) {
  std::vector<Screened> screened;
  if (values.resident() != nullptr) {
    screened = values.resident()->screen(site, screening);
  } else {
    screened.resize(count_tiles(layout, kFloatGroup));
    for_each_tile(layout, kFloatGroup, threads, [&](std::size_t index, const Tile& tile) {
      screened[index] = values.screen(tile, site, screening);
    });
  }
  for_each_tile(layout, kIntegerGroup, threads, [&](std::size_t, const Tile& tile) {
    std::array<std::int64_t, kTile> room;
    values.read(tile, site, {room.data(), tile.count});
  });
  return screened;
}

CommittedUpdate borrow_update(const Layout& layout, const std::string& site, TensorData tensors,
                              Owner owner, unsigned threads, Screening screening) {
  std::vector<const std::byte*> places(tensors.begin(), tensors.end());
  auto values = read_tensors(layout, places);  // moving the vector does not move its elements
  auto screened = screen_update(layout, *values, site, threads, screening);
  return {site,
          1,
          std::move(owner),
          std::move(places),
          StoredBytes("", site, 0),
          std::move(screened),
          std::move(values)};
}

// As many updates as there may be, each of the largest weight, stay below this bound.
UpdateSet::UpdateSet(const Layout& layout, unsigned threads, std::string spool, Screening screening)
    : layout_(layout),
      threads_(threads),
      spool_(std::move(spool)),
      screening_(screening),
      contributors_(kMaxTotalWeight) {
  static_assert(static_cast<std::uint64_t>(kMaxWeight) * kMaxUpdates <= kMaxTotalWeight);
  if (threads_ == 0) throw ConfigError("threads must be at least 1, got 0");
}

CommittedUpdate UpdateSet::keep(const std::string& site, TensorData tensors) const {
  StoredBytes kept(spool_, site, kept_bytes(layout_));
  std::vector<Screened> screened(count_tiles(layout_, kFloatGroup));
  for_each_tile(layout_, kFloatGroup, threads_, [&](std::size_t index, const Tile& tile) {
    screened[index] = keep_floats(layout_, tensors, tile, site, screening_, kept);
  });
  for_each_tile(layout_, kIntegerGroup, threads_, [&](std::size_t, const Tile& tile) {
    keep_integers(layout_, tensors, tile, site, kept);
  });
  kept.seal();
  auto values = read_kept(layout_, kept.bytes());
  return {site, 1, nullptr, {}, std::move(kept), std::move(screened), std::move(values)};
}

// The copy is what is checked: the caller could change its own bytes afterwards.
CommittedUpdate UpdateSet::keep(const std::string& site, std::span<const ByteSpan> chunks,
                                const UpdateForm& form) const {
  const std::vector<std::size_t> sizes =
      update_chunk_sizes(layout_, {form, 0, std::nullopt, false, threads_});
  require_sizes(chunks, sizes);
  StoredBytes kept(spool_, site, std::accumulate(sizes.begin(), sizes.end(), std::size_t{0}));
  for (std::size_t offset = 0; const ByteSpan chunk : chunks) {
    kept.write(offset, chunk);
    offset += chunk.size();
  }
  kept.seal();
  std::vector<FilePlace> places;
  for (std::uint64_t begin = 0; const std::size_t size : sizes) {
    places.push_back({begin, size});
    begin += size;
  }
  return screened(site, std::move(kept), places, form);
}

CommittedUpdate UpdateSet::screened(const std::string& site, StoredBytes kept,
                                    std::span<const FilePlace> places,
                                    const UpdateForm& form) const {
  std::vector<ByteSpan> chunks;
  for (const FilePlace& place : places)
    chunks.push_back(kept.bytes().subspan(place.begin, place.size));
  CommittedUpdate update =
      borrow_chunks(layout_, site, chunks, form, nullptr, threads_, screening_);
  return {site, 1, nullptr, {}, std::move(kept), std::move(update.tiles), std::move(update.values)};
}

CommittedUpdate borrow_chunks(const Layout& layout, const std::string& site,
                              std::span<const ByteSpan> chunks, const UpdateForm& form, Owner owner,
                              unsigned threads, Screening screening) {
  auto values = read_chunks(layout, check_update(layout, chunks, form), form);
  auto screened = screen_update(layout, *values, site, threads, screening);
  return {site,
          1,
          std::move(owner),
          {},
          StoredBytes("", site, 0),
          std::move(screened),
          std::move(values)};
}

void UpdateSet::commit(Contributors::Arrival& arrival, CommittedUpdate update) {
  update.share = arrival.share();
  update.bytes.release_pages();
  auto shared = std::make_shared<const CommittedUpdate>(std::move(update));
  const auto lock = contributors_.lock();
  const auto place = updates_.emplace(arrival.site(), std::move(shared)).first;
  try {
    arrival.count();
  } catch (...) {
    updates_.erase(place);
    throw;
  }
}

void UpdateSet::add_tensors(const std::string& site, Share share, TensorData tensors, Owner owner) {
  const FloatEnvironment exact;
  Contributors::Arrival arrival(contributors_, site, share);
  if (owner != nullptr && spool_.empty())
    commit(arrival, borrow_update(layout_, site, tensors, std::move(owner), threads_, screening_));
  else
    commit(arrival, keep(site, tensors));
}

void UpdateSet::add_chunks(const std::string& site, Share share, std::span<const ByteSpan> chunks,
                           const UpdateForm& form, Owner owner) {
  const FloatEnvironment exact;
  Contributors::Arrival arrival(contributors_, site, share);
  if (owner != nullptr && spool_.empty())
    commit(arrival,
           borrow_chunks(layout_, site, chunks, form, std::move(owner), threads_, screening_));
  else
    commit(arrival, keep(site, chunks, form));
}

void UpdateSet::add_file(const std::string& site, Share share, int file,
                         std::span<const FilePlace> places, const UpdateForm& form) {
  const FloatEnvironment exact;
  Contributors::Arrival arrival(contributors_, site, share);
  std::uint64_t end = 0;
  for (const FilePlace& place : places) {
    if (place.begin < end || place.begin > kMostFileBytes ||
        place.size > kMostFileBytes - place.begin)
      throw ConfigError("places of chunks in a file must follow each other");
    end = place.begin + place.size;
  }
  commit(arrival, screened(site, StoredBytes(file, site, end), places, form));
}

void UpdateSet::add(const std::string& site, Share share,
                    const std::function<CommittedUpdate(Screening)>& make) {
  const FloatEnvironment exact;
  Contributors::Arrival arrival(contributors_, site, share);
  commit(arrival, make(screening_));
}

void UpdateSet::remove(const std::string& site) {
  std::shared_ptr<const CommittedUpdate> forgotten;  // destroyed after the lock is free
  const auto lock = contributors_.lock();
  const auto found = updates_.find(site);
  if (found == updates_.end()) throw ConfigError("site '" + site + "' has no update to remove");
  forgotten = std::move(found->second);
  updates_.erase(found);
  contributors_.forget(site);
}

Contribution UpdateSet::contribution() const {
  const auto lock = contributors_.lock();
  return contributors_.counted();
}

UpdateSnapshot UpdateSet::snapshot() const {
  const auto lock = contributors_.lock();
  UpdateSnapshot snapshot{{}, {}, contributors_.total_weight()};
  for (const auto& [site, update] : updates_) {
    snapshot.updates.push_back(update);
    snapshot.shares.push_back(update->share);
  }
  return snapshot;
}

}  // namespace veilsum
