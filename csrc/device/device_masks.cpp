#include "device/device_masks.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "base/parallel.h"
#include "device/device_keys.h"
#include "device/device_mean.h"
#include "device/mask_launchers.h"
#include "device/secret_memory.h"
#include "device/windows.h"
#include "element/bits.h"
#include "masks/ring_words.h"

namespace veilsum {
namespace {

constexpr std::size_t kTileWords = 4096;     // windows are whole tiles of the mean: eight of masks
constexpr std::size_t kKeysAtOnce = 1024;    // as on the CPU: bounds what keys take
constexpr std::size_t kCopyBytes = 1 << 18;  // that one thread copies at a time

void copy_with(unsigned threads, void* to, const void* from, std::size_t bytes) {
  parallel_for(bytes, kCopyBytes, threads, [&](const Range& range) {
    std::memcpy(static_cast<std::byte*>(to) + range.begin,
                static_cast<const std::byte*>(from) + range.begin, range.end - range.begin);
  });
}

// --- windows ---------------------------------------------------------------------------------

// One window of sums on its way through the device. What is added to them may pass along; it and
// the sums are secrets, or differ by some.
template <class Word>
class Slot {
 public:
  Slot(const Device& device, std::size_t words, std::size_t input_bytes, unsigned threads)
      : threads_(threads),
        stream_(device),
        host_words_(device, words * sizeof(Word)),
        host_input_(device, input_bytes),
        drain_(stream_),
        words_(stream_, words * sizeof(Word)),
        input_(stream_, input_bytes) {}

  // `write` writes the input; `launch` adds it.
  template <class Write, class LaunchKernel>
  void begin(std::span<Word> sums, std::size_t input_bytes, const Write& write,
             const LaunchKernel& launch) {
    sums_ = sums;
    copy_with(threads_, host_words_.template as<void>(), sums.data(), sums.size_bytes());
    write(host_input_.template as<std::byte>());
    stream_.to_device(words_.template as<void>(), host_words_.template as<void>(),
                      sums.size_bytes());
    stream_.to_device(input_.template as<void>(), host_input_.template as<void>(), input_bytes);
    const int status = launch(
        stream_.launch(),
        DeviceWords{words_.template as<void>(), sums.size(), sizeof(Word) == sizeof(std::uint64_t)},
        input_.template as<unsigned char>());
    stream_.device().check(status, "launching a masked sum", sums.size_bytes());
    stream_.to_host(host_words_.template as<void>(), words_.template as<void>(), sums.size_bytes());
  }

  // Waits for it and takes the sums back. Does nothing if no window was begun.
  void finish() {
    if (sums_.empty()) return;
    stream_.synchronize();
    copy_with(threads_, sums_.data(), host_words_.template as<void>(), sums_.size_bytes());
    sums_ = {};
  }

 private:
  const unsigned threads_;
  const DeviceStream stream_;
  const WipedPinnedBuffer host_words_;
  const WipedPinnedBuffer host_input_;
  const DrainAtExit drain_;  // an error may have come between a copy and the wait for it
  const ClearedDeviceBuffer words_;
  const ClearedDeviceBuffer input_;
  std::span<Word> sums_;
};

template <class Word>
std::size_t window_words(std::size_t count, std::size_t input_bytes_per_tile) {
  const std::size_t tiles =
      most_window_tiles(std::max(kTileWords * sizeof(Word), input_bytes_per_tile));
  return std::min(count, tiles * kTileWords);
}

// Calls begin(slot, first, count) for every window of `count` words.
template <class Word, class Begin>
void for_each_window(const Device& device, std::size_t count, std::size_t words,
                     std::size_t input_bytes, unsigned threads, const Begin& begin) {
  walk_windows<Slot<Word>>(
      count, words,
      [&](std::optional<Slot<Word>>& slot) { slot.emplace(device, words, input_bytes, threads); },
      begin);
}

// --- masks -----------------------------------------------------------------------------------

MaskWindow mask_window(const DeviceKeys& keys, const DeviceWords& sums, const MaskPlace& place) {
  return {.sums = sums,
          .aes = keys.aes(),
          .keys = keys.place(),
          .added = keys.added(),
          .subtracted = keys.subtracted(),
          .stream = place.stream,
          .bits = place.bits,
          .first = place.first};
}

template <class Word>
void add_on(const Device& device, std::span<Word> accumulator, const MaskKeys& keys,
            const MaskPlace& place, unsigned threads) {
  require_mask_place(place, accumulator.size(), 8 * sizeof(Word));
  const OnDevice on(device);
  const std::size_t words = window_words<Word>(accumulator.size(), 0);
  for (auto rest = keys.terms(); !rest.empty() && !accumulator.empty();) {
    const std::size_t count = std::min(rest.size(), kKeysAtOnce);
    const DeviceKeys ready(device, keys.generator(), rest.first(count));
    for_each_window<Word>(
        device, accumulator.size(), words, 0, threads,
        [&](Slot<Word>& slot, std::size_t first, std::size_t size) {
          const MaskPlace here = {place.stream, place.bits, place.first + first};
          slot.begin(
              accumulator.subspan(first, size), 0, [](std::byte*) {},
              [&](const Launch& launch, const DeviceWords& sums, const unsigned char*) {
                return device.api().masks->add_masks(launch, mask_window(ready, sums, here));
              });
        });
    rest = rest.subspan(count);
  }
}

// --- uploads ---------------------------------------------------------------------------------

// Fields [first, first + count) of an upload, which chunks hold `chunk_fields` of each. Windows and
// chunks begin on whole bytes.
void copy_fields(const std::vector<std::span<const std::byte>>& chunks, std::size_t chunk_fields,
                 unsigned bits, std::size_t first, std::size_t count, std::byte* to) {
  while (count != 0) {
    const std::size_t offset = first % chunk_fields;
    const std::size_t now = std::min(count, chunk_fields - offset);
    const std::size_t bytes = packed_size(now, bits);
    std::memcpy(to, chunks[first / chunk_fields].data() + packed_size(offset, bits), bytes);
    to += bytes;
    first += now;
    count -= now;
  }
}

// Adds uploads whose windows go into memory together.
template <class Word>
void fold_some(const Device& device, std::span<Word> sums, std::span<const RingCodes> uploads,
               unsigned bits, std::size_t chunk_fields, unsigned threads) {
  const std::size_t words =
      window_words<Word>(sums.size(), uploads.size() * packed_stride(kTileWords, bits));
  for_each_window<Word>(
      device, sums.size(), words, uploads.size() * packed_stride(words, bits), threads,
      [&](Slot<Word>& slot, std::size_t first, std::size_t size) {
        const std::size_t stride = packed_stride(size, bits);
        slot.begin(
            sums.subspan(first, size), uploads.size() * stride,
            [&](std::byte* input) {
              parallel_for(uploads.size(), 1, threads, [&](const Range& range) {
                copy_fields(uploads[range.index], chunk_fields, bits, first, size,
                            input + range.index * stride);
              });
            },
            [&](const Launch& launch, const DeviceWords& window, const unsigned char* strings) {
              return device.api().masks->add_packed(
                  launch, {window, strings, uploads.size(), stride, bits});
            });
      });
}

template <class Word>
void fold_on(const Device& device, std::span<Word> sums, Uploads uploads, unsigned bits,
             std::uint64_t chunk_coordinates, unsigned threads) {
  const std::vector<RingCodes> codes =
      ring_codes(uploads, sums.size(), bits, 8 * sizeof(Word), chunk_coordinates);
  const OnDevice on(device);
  const std::size_t most = std::max<std::size_t>(
      1, current_pass_memory().window_bytes / packed_stride(kTileWords, bits));
  for (std::span<const RingCodes> rest = codes; !rest.empty() && !sums.empty();) {
    const std::size_t count = std::min(rest.size(), most);
    fold_some(device, sums, rest.first(count), bits, chunk_coordinates, threads);
    rest = rest.subspan(count);
  }
}

}  // namespace

void add_masks_on(const Device& device, std::span<std::uint32_t> accumulator, const MaskKeys& keys,
                  const MaskPlace& place, unsigned threads) {
  add_on(device, accumulator, keys, place, threads);
}

void add_masks_on(const Device& device, std::span<std::uint64_t> accumulator, const MaskKeys& keys,
                  const MaskPlace& place, unsigned threads) {
  add_on(device, accumulator, keys, place, threads);
}

void fold_ring_chunks_on(const Device& device, std::span<std::uint32_t> sums, Uploads uploads,
                         unsigned bits, std::uint64_t chunk_coordinates, unsigned threads) {
  fold_on(device, sums, uploads, bits, chunk_coordinates, threads);
}

void fold_ring_chunks_on(const Device& device, std::span<std::uint64_t> sums, Uploads uploads,
                         unsigned bits, std::uint64_t chunk_coordinates, unsigned threads) {
  fold_on(device, sums, uploads, bits, chunk_coordinates, threads);
}

}  // namespace veilsum
