#include "aggregate/update_reader.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "aggregate/spool.h"
#include "aggregate/subsampled_reader.h"
#include "base/error.h"
#include "codec/codecs.h"
#include "kernels/dispatch.h"
#include "update/value_codec.h"
#include "update/values.h"

namespace veilsum {

bool needs_double(const Layout& layout) {
  const auto& spans = layout.group(kFloatGroup);
  return std::any_of(spans.begin(), spans.end(), [&](const TensorSpan& span) {
    return layout.tensors()[span.tensor].dtype == DType::f64;
  });
}

namespace {

constexpr double kNotAsked = std::numeric_limits<double>::quiet_NaN();

// --- the two widths of values ---------------------------------------------------

// Patterns of magnitudes order like magnitudes, so what is not finite shows in the largest.
double max_abs(const WireFloat* values, std::size_t count) {
  const std::uint32_t bits = kernels().codec.max_abs32(values, count);
  float largest;
  std::memcpy(&largest, &bits, sizeof largest);
  return largest;
}

Screened screen_values(const WireFloat* values, std::size_t count, Screening screening) {
  if (screening == Screening::magnitudes) return {max_abs(values, count), kNotAsked};
  std::uint32_t bits;
  const double squares = kernels().codec.screen_f32(values, count, &bits);
  float largest;
  std::memcpy(&largest, &bits, sizeof largest);
  return {largest, squares};
}

Screened screen_values(const WireDouble* values, std::size_t count, Screening screening) {
  std::uint64_t bits;
  double squares = kNotAsked;
  if (screening == Screening::magnitudes)
    bits = kernels().codec.max_abs64(values, count);
  else
    squares = kernels().codec.screen_f64(values, count, &bits);
  double largest;
  std::memcpy(&largest, &bits, sizeof largest);
  return {largest, squares};
}

// Not a template of the type read, and not std::copy: both lose the alignment of a Wire type.
template <class To>
void copy_values(const WireFloat* values, std::span<To> out) {
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = values[i];
}

template <class To>
void copy_values(const WireDouble* values, std::span<To> out) {
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<To>(values[i]);
}

void add_values(const WireFloat* values, std::size_t count, double factor, std::uint64_t* sums) {
  kernels().codec.add_f32(values, count, factor, sums);
}

void add_values(const WireDouble* values, std::size_t count, double factor, std::uint64_t* sums) {
  kernels().codec.add_f64(values, count, factor, sums);
}

void gather_tile(const Layout& layout, TensorData tensors, const Tile& tile,
                 std::span<float> values) {
  gather(layout, tensors, tile.first, Narrowing::nearest, values);
}

void gather_tile(const Layout& layout, TensorData tensors, const Tile& tile,
                 std::span<double> values) {
  gather(layout, tensors, tile.first, values);
}

// --- tensors ----------------------------------------------------------------------

[[noreturn]] void refuse_not_finite(const Layout& layout, TensorData tensors,
                                    const std::string& site) {
  for (const TensorSpan& span : layout.group(kFloatGroup)) {
    const Tensor& tensor = layout.tensors()[span.tensor];
    if (const std::uint64_t bad = count_not_finite(tensor, tensors[span.tensor]))
      throw PeerError(site, "sent " + std::to_string(bad) +
                                " values that are not finite in tensor '" + tensor.name + "'");
  }
  throw PeerError(site, "sent arrays that changed while they were read");
}

Screened require_finite(const Layout& layout, TensorData tensors, const std::string& site,
                        const Screened& screened) {
  if (!std::isfinite(screened.largest)) refuse_not_finite(layout, tensors, site);
  return screened;
}

template <class Value>
Screened screen_tile(const Layout& layout, TensorData tensors, const Tile& tile,
                     const std::string& site, Screening screening, std::span<Value> values) {
  gather_tile(layout, tensors, tile, values);
  return require_finite(layout, tensors, site,
                        screen_values(values.data(), values.size(), screening));
}

// The part's values where they lie, if it is of an f32 tensor.
const WireFloat* floats_in_place(const Layout& layout, TensorData tensors, const TensorPart& part) {
  if (layout.tensors()[part.tensor].dtype != DType::f32) return nullptr;
  return reinterpret_cast<const WireFloat*>(tensors[part.tensor]) + part.element;
}

// The tile's values where they lie, if the whole tile is part of one f32 tensor.
const WireFloat* floats_in_place(const Layout& layout, TensorData tensors, const Tile& tile) {
  const WireFloat* found = nullptr;
  for_each_part(layout, kFloatGroup, tile.first, tile.count, [&](const TensorPart& part) {
    if (part.count == tile.count) found = floats_in_place(layout, tensors, part);
  });
  return found;
}

void gather_integers(const Layout& layout, TensorData tensors, const Tile& tile,
                     const std::string& site, std::span<std::int64_t> values) {
  try {
    gather(layout, tensors, tile.first, values);
  } catch (const ConfigError& error) {  // here the tensors are a site's
    throw PeerError(site, std::string("sent a bad update: ") + error.what(), error.hint());
  }
}

template <class Value>
class TensorReader final : public UpdateReader {
 public:
  TensorReader(const Layout& layout, TensorData tensors) : layout_(layout), tensors_(tensors) {}

  Screened screen(const Tile& tile, const std::string& site, Screening screening) const override {
    if (const WireFloat* values = floats_in_place(layout_, tensors_, tile))
      return require_finite(layout_, tensors_, site, screen_values(values, tile.count, screening));
    std::array<Value, kTile> values;
    return screen_tile(layout_, tensors_, tile, site, screening,
                       std::span(values.data(), tile.count));
  }

  void add(const Tile& tile, double factor, std::uint64_t* sums) const override {
    std::array<Value, kTile> values;
    gather_tile(layout_, tensors_, tile, std::span(values.data(), tile.count));
    add_values(values.data(), tile.count, factor, sums);
  }

  const WireFloat* floats(const Tile&, const TensorPart& part) const override {
    return floats_in_place(layout_, tensors_, part);
  }

  void values(const Tile& tile, std::span<float> out) const override {
    gather_tile(layout_, tensors_, tile, out);
  }
  void values(const Tile& tile, std::span<double> out) const override {
    gather_tile(layout_, tensors_, tile, out);
  }

  void read(const Tile& tile, const std::string& site,
            std::span<std::int64_t> values) const override {
    gather_integers(layout_, tensors_, tile, site, values);
  }

 private:
  const Layout& layout_;
  const TensorData tensors_;
};

// --- the kept form ------------------------------------------------------------------

template <class Value>
Screened keep_tile(const Layout& layout, TensorData tensors, const Tile& tile,
                   const std::string& site, Screening screening, StoredBytes& kept) {
  const std::size_t offset = tile.first * sizeof(Value);
  if (std::byte* place = kept.place(offset))
    return screen_tile(layout, tensors, tile, site, screening,
                       std::span(reinterpret_cast<Value*>(place), tile.count));
  std::array<Value, kTile> room;
  const std::span values(room.data(), tile.count);
  const Screened screened = screen_tile(layout, tensors, tile, site, screening, values);
  kept.write(offset, std::as_bytes(values));
  return screened;
}

std::size_t kept_value_bytes(const Layout& layout) { return needs_double(layout) ? 8 : 4; }

template <class Value>
class KeptReader final : public UpdateReader {
 public:
  typedef Value Wire __attribute__((aligned(1), may_alias));

  KeptReader(const Layout& layout, std::span<const std::byte> kept)
      : floats_(reinterpret_cast<const Wire*>(kept.data())),
        integers_(kept.data() + layout.group_size(kFloatGroup) * sizeof(Value)) {}

  Screened screen(const Tile& tile, const std::string&, Screening screening) const override {
    return screen_values(floats_ + tile.first, tile.count, screening);
  }

  void add(const Tile& tile, double factor, std::uint64_t* sums) const override {
    add_values(floats_ + tile.first, tile.count, factor, sums);
  }

  const WireFloat* floats(const Tile& tile, const TensorPart& part) const override {
    if constexpr (sizeof(Value) == sizeof(float)) return floats_ + tile.first + part.offset;
    return nullptr;
  }

  void values(const Tile& tile, std::span<float> out) const override {
    copy_values(floats_ + tile.first, out);
  }
  void values(const Tile& tile, std::span<double> out) const override {
    copy_values(floats_ + tile.first, out);
  }

  void read(const Tile& tile, const std::string&, std::span<std::int64_t> values) const override {
    std::memcpy(values.data(), integers_ + tile.first * 8, values.size_bytes());
  }

 private:
  const Wire* floats_;
  const std::byte* integers_;
};

// --- chunks -------------------------------------------------------------------------

static_assert(kTile == kCodedTile);

class ChunkReader final : public UpdateReader {
 public:
  ChunkReader(const Layout& layout, std::vector<ChunkView> chunks, const UpdateForm& form)
      : layout_(layout),
        chunks_(std::move(chunks)),
        form_(form),
        codec_(value_codec(form.codec)),
        float_chunks_(update_grid(layout, form, kFloatGroup).chunks()) {}

  Screened screen(const Tile& tile, const std::string& site, Screening screening) const override {
    const CodedTile coded = codes(tile);
    const double largest = codec_.largest(coded);
    if (!std::isfinite(largest))
      throw PeerError(
          site, "sent codes beyond every f32 value near coordinate " + std::to_string(tile.first));
    if (largest > sent_limit(DType::f16) || has_gap(tile)) screen_parts(tile, site);
    return {largest, screening == Screening::squares ? squares(tile) : kNotAsked};
  }

  void add(const Tile& tile, double factor, std::uint64_t* sums) const override {
    codec_.add(codes(tile), factor, sums);
  }

  const WireFloat* floats(const Tile& tile, const TensorPart& part) const override {
    const WireFloat* values = codec_.floats(codes(tile));
    return values == nullptr ? nullptr : values + part.offset;
  }

  std::optional<CodedTile> coded(const Tile& tile) const override {
    if (form_.codec == kCodecF32) return std::nullopt;
    return codes(tile);
  }

  void values(const Tile& tile, std::span<float> out) const override {
    codec_.decode(codes(tile), out);
    if (codec_.fills_gaps()) clear_gaps(layout_, out, tile.first);
  }
  void values(const Tile& tile, std::span<double> out) const override {
    std::array<float, kTile> room;
    values(tile, std::span<float>(room.data(), tile.count));
    copy_values(room.data(), out);
  }

  void read(const Tile& tile, const std::string& site,
            std::span<std::int64_t> values) const override {
    const ChunkView& chunk = chunk_of(tile, float_chunks_);
    decode_integers(chunk, tile.first - chunk.header.first, values);
    check_gaps(layout_, values, tile.first);
    for_each_part(layout_, kIntegerGroup, tile.first, tile.count, [&](const TensorPart& part) {
      const Tensor& tensor = layout_.tensors()[part.tensor];
      for (const std::int64_t value : values.subspan(part.offset, part.count))
        if (!fits(tensor.dtype, value))
          throw PeerError(site, "sent a value of tensor '" + tensor.name + "' that does not fit " +
                                    std::string(dtype_name(tensor.dtype)));
    });
  }

 private:
  // Tiles never cross chunks: chunks cover a multiple of kTile coordinates.
  const ChunkView& chunk_of(const Tile& tile, std::size_t first_chunk) const {
    return chunks_[first_chunk + tile.first / form_.chunk_coordinates];
  }

  CodedTile codes(const Tile& tile) const {
    const ChunkView& chunk = chunk_of(tile, 0);
    return {layout_, chunk, form_, tile.first - chunk.header.first, tile.count};
  }

  double squares(const Tile& tile) const {
    if (!codec_.fills_gaps()) return codec_.squares(codes(tile));
    std::array<float, kTile> room;
    const std::span<float> values(room.data(), tile.count);
    this->values(tile, values);
    return screen_values(values.data(), values.size(), Screening::squares).squares;
  }

  bool has_gap(const Tile& tile) const {
    std::size_t covered = 0;
    for_each_part(layout_, kFloatGroup, tile.first, tile.count,
                  [&](const TensorPart& part) { covered += part.count; });
    return covered != tile.count;
  }

  void screen_parts(const Tile& tile, const std::string& site) const {
    std::array<float, kTile> room;
    const std::span<float> values(room.data(), tile.count);
    codec_.decode(codes(tile), values);
    if (!codec_.fills_gaps() && !is_rotated(form_)) check_gaps(layout_, values, tile.first);
    for_each_part(layout_, kFloatGroup, tile.first, tile.count, [&](const TensorPart& part) {
      const Tensor& tensor = layout_.tensors()[part.tensor];
      if (max_abs(values.data() + part.offset, part.count) > sent_limit(tensor.dtype))
        throw PeerError(site, "sent values of tensor '" + tensor.name + "' that do not fit " +
                                  std::string(dtype_name(tensor.dtype)));
    });
  }

  static bool fits(DType dtype, std::int64_t value) {
    switch (dtype) {
      case DType::i8:
        return std::in_range<std::int8_t>(value);
      case DType::i16:
        return std::in_range<std::int16_t>(value);
      case DType::i32:
        return std::in_range<std::int32_t>(value);
      case DType::u8:
        return std::in_range<std::uint8_t>(value);
      case DType::u16:
        return std::in_range<std::uint16_t>(value);
      case DType::u32:
        return std::in_range<std::uint32_t>(value);
      case DType::u64:
        return value >= 0;
      default:
        return true;
    }
  }

  const Layout& layout_;
  const std::vector<ChunkView> chunks_;
  const UpdateForm form_;
  const ValueCodec& codec_;
  const std::size_t float_chunks_;
};

}  // namespace

std::unique_ptr<UpdateReader> read_tensors(const Layout& layout, TensorData tensors) {
  if (needs_double(layout)) return std::make_unique<TensorReader<double>>(layout, tensors);
  return std::make_unique<TensorReader<float>>(layout, tensors);
}

std::size_t kept_bytes(const Layout& layout) {
  return layout.group_size(kFloatGroup) * kept_value_bytes(layout) +
         layout.group_size(kIntegerGroup) * 8;
}

Screened keep_floats(const Layout& layout, TensorData tensors, const Tile& tile,
                     const std::string& site, Screening screening, StoredBytes& kept) {
  return needs_double(layout) ? keep_tile<double>(layout, tensors, tile, site, screening, kept)
                              : keep_tile<float>(layout, tensors, tile, site, screening, kept);
}

void keep_integers(const Layout& layout, TensorData tensors, const Tile& tile,
                   const std::string& site, StoredBytes& kept) {
  std::array<std::int64_t, kTile> room;
  const std::span values(room.data(), tile.count);
  gather_integers(layout, tensors, tile, site, values);
  kept.write(layout.group_size(kFloatGroup) * kept_value_bytes(layout) + tile.first * 8,
             std::as_bytes(values));
}

std::unique_ptr<UpdateReader> read_kept(const Layout& layout, std::span<const std::byte> kept) {
  if (needs_double(layout)) return std::make_unique<KeptReader<double>>(layout, kept);
  return std::make_unique<KeptReader<float>>(layout, kept);
}

std::unique_ptr<UpdateReader> read_chunks(const Layout& layout, std::vector<ChunkView> chunks,
                                          const UpdateForm& form) {
  if (is_subsampled(form)) {
    auto integers = std::make_unique<ChunkReader>(layout, chunks, form);
    return read_subsampled(layout, std::move(chunks), form, std::move(integers));
  }
  return std::make_unique<ChunkReader>(layout, std::move(chunks), form);
}

}  // namespace veilsum
