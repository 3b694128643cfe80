#include "masks/ring_chunks.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <string>

#include "base/error.h"
#include "base/parallel.h"
#include "base/secret.h"
#include "codec/codecs.h"
#include "element/bits.h"
#include "element/quantize.h"
#include "kernels/dispatch.h"
#include "masks/masks.h"
#include "masks/ring_words.h"

namespace veilsum {
namespace {

// --- one chunk of words --------------------------------------------------------

void pack_into(std::span<const std::uint32_t> words, unsigned bits, std::byte* codes) {
  kernels().ring.pack32(words.data(), words.size(), bits, reinterpret_cast<unsigned char*>(codes));
}

void pack_into(std::span<const std::uint64_t> words, unsigned bits, std::byte* codes) {
  kernels().ring.pack64(words.data(), words.size(), bits, reinterpret_cast<unsigned char*>(codes));
}

// Writes chunks a run of mask tiles at a time: steps, keystream and packed words of a run
// fit into the first-level cache, and no more than that is ever in memory in the clear. It
// is wiped with the writer.
template <class Word>
class ChunkWriter {
 public:
  explicit ChunkWriter(const RingChunkPlan& plan)
      : plan_(plan), words_(kRunTiles * kTileElements), keystream_(kMaskScratchBytes) {}

  // `fill(first, words)` writes the words of the coordinates from `first` on over zeros.
  template <class Fill>
  void write(const ChunkHeader& header, const Fill& fill, std::byte* chunk) {
    std::byte* const codes = chunk + codes_offset(header.codec, header.count);
    const unsigned bits = ring_bits(header.codec);
    for (std::size_t done = 0; done < header.count; done += words_.size()) {
      const auto words = words_.span().first(std::min(words_.size(), header.count - done));
      std::fill(words.begin(), words.end(), Word{0});
      fill(header.first + done, words);
      add_masks_here(words, plan_.terms, {header.group, bits, header.first + done}, keystream_);
      pack_into(words, bits, codes + packed_size(done, bits));
    }
    write_chunk(header, {}, {codes, packed_size(header.count, bits)}, chunk);
  }

 private:
  const RingChunkPlan& plan_;
  WipedBuffer<Word> words_;
  MaskScratch keystream_;
};

template <class Word, class Fill>
void write_chunks(const RingChunkPlan& plan, std::span<std::byte* const> chunks, const Fill& fill) {
  parallel_for(plan.grid.chunks(), 1, plan.threads, [&](const Range& range) {
    ChunkWriter<Word>(plan).write(plan.grid.header(range.index), fill, chunks[range.index]);
  });
}

// Words of up to 32 bits are half the memory and twice the lanes of wider ones.
template <class Fill>
void write_chunks_of_width(const RingChunkPlan& plan, std::span<std::byte* const> chunks,
                           const Fill& fill) {
  if (ring_bits(plan.grid.codec) <= 32)
    write_chunks<std::uint32_t>(plan, chunks, fill);
  else
    write_chunks<std::uint64_t>(plan, chunks, fill);
}

// --- values to steps -------------------------------------------------------------

StepCount write_steps(bool wide, const void* values, std::uint64_t first, const StepRule& rule,
                      std::span<std::uint32_t> words) {
  const RingKernels& ring = kernels().ring;
  return (wide ? ring.steps32_f64 : ring.steps32_f32)(values, words.size(), first, rule,
                                                      words.data());
}

StepCount write_steps(bool wide, const void* values, std::uint64_t first, const StepRule& rule,
                      std::span<std::uint64_t> words) {
  const RingKernels& ring = kernels().ring;
  return (wide ? ring.steps64_f64 : ring.steps64_f32)(values, words.size(), first, rule,
                                                      words.data());
}

template <class Word>
StepCount write_half_steps(bool brain, const WireHalf* values, std::uint64_t first,
                           const StepRule& rule, std::span<Word> words) {
  const CodecKernels& codec = kernels().codec;
  WipedBuffer<float> widened(words.size());
  (brain ? codec.widen_bf16 : codec.widen_f16)(values, words.size(), widened.data());
  return write_steps(false, widened.data(), first, rule, words);
}

// Steps of `words.size()` values of a tensor; `values` points at the first of them.
template <class Word>
StepCount write_tensor_steps(DType dtype, const std::byte* values, std::uint64_t first,
                             const StepRule& rule, std::span<Word> words) {
  if (dtype == DType::f32 || dtype == DType::f64)
    return write_steps(dtype == DType::f64, values, first, rule, words);
  return write_half_steps(dtype == DType::bf16, reinterpret_cast<const WireHalf*>(values), first,
                          rule, words);
}

std::string to_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

// Encodes the tensors of group 1 and keeps count of what was wrong with their values.
class StepWriter {
 public:
  StepWriter(const Layout& layout, TensorData tensors, const StepPlan& steps)
      : layout_(layout),
        tensors_(tensors),
        steps_(steps),
        place_(layout.tensors().size()),
        not_finite_(steps.gains.size()),
        beyond_limit_(steps.gains.size()) {
    const auto& spans = layout.group(kFloatGroup);
    for (std::size_t i = 0; i < spans.size(); ++i) place_[spans[i].tensor] = i;
  }

  // Fills the words of the coordinates from `first` on; gaps are left alone.
  template <class Word>
  void fill(std::uint64_t first, std::span<Word> words) {
    for_each_part(layout_, kFloatGroup, first, words.size(), [&](const TensorPart& part) {
      fill_part(part, first + part.offset, words.subspan(part.offset, part.count));
    });
  }

  // Throws for what fill() has met, by tensor in layout order; else the clamped values.
  std::uint64_t clamped() const {
    std::uint64_t total = 0;
    for (const TensorSpan& span : layout_.group(kFloatGroup)) {
      const std::string& name = layout_.tensors()[span.tensor].name;
      const std::size_t i = place_[span.tensor];
      if (not_finite_[i] != 0)
        throw ConfigError("tensor '" + name + "' has " + std::to_string(not_finite_[i]) +
                              " values that are not finite",
                          "check the training step; a masked sum cannot carry NaN or infinity");
      if (beyond_limit_[i] != 0 && !steps_.clip)
        throw ConfigError("tensor '" + name + "' has " + std::to_string(beyond_limit_[i]) +
                              " values beyond its limit of " + to_text(steps_.limits[i]),
                          "raise the limit, or allow clipping");
      total += beyond_limit_[i];
    }
    return total;
  }

 private:
  template <class Word>
  void fill_part(const TensorPart& part, std::uint64_t first, std::span<Word> words) {
    const DType dtype = layout_.tensors()[part.tensor].dtype;
    const std::byte* values = tensors_[part.tensor] + part.element * dtype_size(dtype);
    const std::size_t i = place_[part.tensor];
    const StepRule rule = {steps_.gains[i], steps_.limits[i], steps_.rounding.has_value(),
                           steps_.rounding.value_or(PhiloxKey{}), kFloatGroup};
    const StepCount count = write_tensor_steps(dtype, values, first, rule, words);
    not_finite_[i].fetch_add(count.not_finite, std::memory_order_relaxed);
    beyond_limit_[i].fetch_add(count.beyond_limit, std::memory_order_relaxed);
  }

  const Layout& layout_;
  const TensorData tensors_;
  const StepPlan& steps_;
  std::vector<std::size_t> place_;  // of a tensor in its group
  std::vector<std::atomic<std::uint64_t>> not_finite_;
  std::vector<std::atomic<std::uint64_t>> beyond_limit_;
};

// The largest step is that of the limit itself, rounded up as far as rounding goes:
// multiplication and both roundings are monotone.
void require_steps_fit(double limit, double gain, unsigned bits, const std::string& tensor) {
  const double largest = limit * gain;
  if (!(limit >= 0 && std::isfinite(limit) && gain > 0 && std::isfinite(gain)))
    throw ConfigError("tensor '" + tensor + "' needs a finite gain above 0 and a finite limit, " +
                      "got " + to_text(gain) + " and " + to_text(limit));
  if (largest < 0x1p63 &&
      round_stochastic(largest, 0xFFFFFF) <= static_cast<std::int64_t>(low_bits(bits) >> 1))
    return;
  throw ConfigError("tensor '" + tensor + "' can reach " + to_text(largest) +
                        " steps, beyond the signed range of " + std::to_string(bits) + " bits",
                    "use a wider ring or fewer steps per unit");
}

void check_step_plan(const Layout& layout, const StepPlan& steps, unsigned bits) {
  const auto& spans = layout.group(kFloatGroup);
  if (steps.gains.size() != spans.size() || steps.limits.size() != spans.size())
    throw ConfigError("one gain and one limit per floating-point tensor are needed: " +
                      std::to_string(spans.size()) + ", got " + std::to_string(steps.gains.size()) +
                      " and " + std::to_string(steps.limits.size()));
  for (std::size_t i = 0; i < spans.size(); ++i)
    require_steps_fit(steps.limits[i], steps.gains[i], bits,
                      layout.tensors()[spans[i].tensor].name);
}

// --- folding -----------------------------------------------------------------------

// Checked again where it decides which memory is touched: this check is what keeps a
// mistake of the caller from becoming an access out of bounds.
std::span<const std::byte> codes_of(std::span<const std::byte> chunk, const ChunkGrid& grid,
                                    std::size_t index) {
  const ChunkHeader expected = grid.header(index);
  const std::size_t size = chunk_bytes(expected.codec, expected.count);
  if (chunk.size() != size)
    throw DecodeError("chunk " + std::to_string(index) + " must have " + std::to_string(size) +
                      " bytes, got " + std::to_string(chunk.size()));
  const ChunkView view = view_chunk(chunk);
  if (view.header.codec != expected.codec || view.header.index != expected.index ||
      view.header.count != expected.count)
    throw DecodeError("chunk " + std::to_string(index) + " of codec " + codec_name(expected.codec) +
                      " is missing or out of order");
  return view.codes;
}

void require_whole(Uploads uploads, const ChunkGrid& grid) {
  for (const auto& chunks : uploads) {
    if (chunks.size() != grid.chunks())
      throw DecodeError(std::to_string(grid.group_size) + " coordinates are " +
                        std::to_string(grid.chunks()) + " chunks, got " +
                        std::to_string(chunks.size()));
    for (std::size_t i = 0; i < chunks.size(); ++i) codes_of(chunks[i], grid, i);
  }
}

template <class Word>
void fold(std::span<Word> sums, Uploads uploads, unsigned bits, std::uint64_t chunk_coordinates,
          unsigned threads) {
  require_ring_bits(bits, 8 * sizeof(Word));
  require_chunk_coordinates(chunk_coordinates);
  ChunkGrid grid{};
  grid.codec = static_cast<std::uint16_t>(kCodecRing | bits);
  grid.group_size = sums.size();
  grid.chunk_coordinates = chunk_coordinates;
  require_whole(uploads, grid);
  parallel_for(grid.chunks(), 1, threads, [&](const Range& range) {
    std::vector<std::span<const std::byte>> codes;
    for (const auto& chunks : uploads)
      codes.push_back(codes_of(chunks[range.index], grid, range.index));
    const ChunkHeader header = grid.header(range.index);
    add_packed(codes, bits, sums.subspan(header.first, header.count));
  });
}

}  // namespace

RingChunkPlan ring_chunk_plan(unsigned bits, const ChunkGrid& place, const MaskTerms& terms,
                              unsigned threads) {
  require_chunk_coordinates(place.chunk_coordinates);
  require_mask_place({place.group, bits, 0}, place.group_size, kMaxRingBits);
  ChunkGrid grid = place;
  grid.codec = static_cast<std::uint16_t>(kCodecRing | bits);
  grid.masked = terms.count != 0;
  return {grid, terms, threads};
}

std::vector<std::size_t> ring_chunk_sizes(const RingChunkPlan& plan) {
  std::vector<std::size_t> sizes(plan.grid.chunks());
  for (std::size_t i = 0; i < sizes.size(); ++i)
    sizes[i] = chunk_bytes(plan.grid.codec, plan.grid.header(i).count);
  return sizes;
}

std::uint64_t write_step_chunks(const Layout& layout, TensorData tensors, const StepPlan& steps,
                                const RingChunkPlan& plan, std::span<std::byte* const> chunks) {
  check_step_plan(layout, steps, ring_bits(plan.grid.codec));
  StepWriter writer(layout, tensors, steps);
  write_chunks_of_width(plan, chunks,
                        [&](std::uint64_t first, auto words) { writer.fill(first, words); });
  return writer.clamped();
}

void write_word_chunks(std::span<const std::uint64_t> words, const RingChunkPlan& plan,
                       std::span<std::byte* const> chunks) {
  write_chunks_of_width(plan, chunks, [&](std::uint64_t first, auto chunk_words) {
    for (std::size_t i = 0; i < chunk_words.size(); ++i) chunk_words[i] = words[first + i];
  });
}

void fold_ring_chunks(std::span<std::uint32_t> sums, Uploads uploads, unsigned bits,
                      std::uint64_t chunk_coordinates, unsigned threads) {
  fold(sums, uploads, bits, chunk_coordinates, threads);
}

void fold_ring_chunks(std::span<std::uint64_t> sums, Uploads uploads, unsigned bits,
                      std::uint64_t chunk_coordinates, unsigned threads) {
  fold(sums, uploads, bits, chunk_coordinates, threads);
}

}  // namespace veilsum
