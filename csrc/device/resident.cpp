#include "device/resident.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "aggregate/tiles.h"
#include "base/error.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

// The format that all tensors have; nothing if they differ.
std::optional<DType> common_dtype(const Layout& layout) {
  std::optional<DType> found;
  for (const TensorSpan& span : layout.group(kFloatGroup)) {
    const DType dtype = layout.tensors()[span.tensor].dtype;
    if (found && *found != dtype) return std::nullopt;
    found = dtype;
  }
  return found;
}

WindowCodes resident_codes(const Layout& layout) {
  const std::optional<DType> common = common_dtype(layout);
  if (common == DType::f16) return WindowCodes::f16;
  if (common == DType::bf16) return WindowCodes::bf16;
  return needs_double(layout) ? WindowCodes::f64 : WindowCodes::f32;
}

// The format whose values lie as the form's codes do.
MeanFormat format_in_place(WindowCodes codes) {
  switch (codes) {
    case WindowCodes::f16:
      return MeanFormat::f16;
    case WindowCodes::bf16:
      return MeanFormat::bf16;
    case WindowCodes::f64:
      return MeanFormat::f64;
    default:
      return MeanFormat::f32;
  }
}

std::size_t value_bytes(MeanFormat format) {
  return format == MeanFormat::f64 ? 8 : format == MeanFormat::f32 ? 4 : 2;
}

class ResidentReader final : public UpdateReader {
 public:
  ResidentReader(const Layout& layout, DeviceOwner device, TensorData tensors)
      : tensors_(std::move(device), layout, tensors), integers_(read_tensors(layout, tensors)) {}

  // By way of the values, of which doubles have the squares that floats have: passes on a device
  // look at them there.
  Screened screen(const Tile& tile, const std::string& site, Screening screening) const override {
    std::array<double, kTile> room;
    const std::span<double> found(room.data(), tile.count);
    tensors_.values(tile, found);
    std::uint64_t bits;
    const double squares = kernels().codec.screen_f64(found.data(), found.size(), &bits);
    const double largest = std::bit_cast<double>(bits);
    if (!std::isfinite(largest)) throw PeerError(site, "sent values that are not finite");
    return {largest,
            screening == Screening::squares ? squares : std::numeric_limits<double>::quiet_NaN()};
  }

  void add(const Tile& tile, double factor, std::uint64_t* sums) const override {
    std::array<double, kTile> room;
    tensors_.values(tile, std::span<double>(room.data(), tile.count));
    kernels().codec.add_f64(room.data(), tile.count, factor, sums);
  }

  const WireFloat* floats(const Tile&, const TensorPart&) const override { return nullptr; }
  const ResidentTensors* resident() const override { return &tensors_; }

  void values(const Tile& tile, std::span<float> out) const override { tensors_.values(tile, out); }
  void values(const Tile& tile, std::span<double> out) const override {
    tensors_.values(tile, out);
  }

  void read(const Tile& tile, const std::string& site,
            std::span<std::int64_t> values) const override {
    integers_->read(tile, site, values);
  }

 private:
  const ResidentTensors tensors_;
  const std::unique_ptr<UpdateReader> integers_;
};

}  // namespace

ResidentTensors::ResidentTensors(DeviceOwner device, const Layout& layout, TensorData tensors)
    : device_(std::move(device)),
      layout_(layout),
      form_{resident_codes(layout), WindowScales::none, 0, true} {
  for (const TensorSpan& span : layout.group(kFloatGroup)) {
    if (span.elements == 0) continue;
    const DType dtype = layout.tensors()[span.tensor].dtype;
    tensors_.push_back({reinterpret_cast<const unsigned char*>(tensors[span.tensor]), span.first,
                        span.elements, mean_format(dtype)});
  }
  const OnDevice on(*device_);
  stream_.emplace(*device_);
  table_.emplace(*stream_, tensors_.size() * sizeof(DeviceTensor));
  stream_->to_device(table_->as<void>(), tensors_.data(), table_->bytes());
  stream_->synchronize();
}

DeviceTensors ResidentTensors::table() const {
  return {table_->as<DeviceTensor>(), tensors_.size(), layout_.group_size(kFloatGroup)};
}

const unsigned char* ResidentTensors::in_place(const Tile& tile) const {
  const auto ends_before = [](const DeviceTensor& tensor, std::uint64_t coordinate) {
    return tensor.first + tensor.elements <= coordinate;
  };
  const auto found = std::lower_bound(tensors_.begin(), tensors_.end(), tile.first, ends_before);
  // Kernels read whole tiles, also of the last one, which may be shorter.
  if (found == tensors_.end() || found->first > tile.first || tile.count != kTile ||
      found->first + found->elements < tile.first + kTile)
    return nullptr;
  const MeanFormat format = format_in_place(form_.codes);
  if (found->format != format) return nullptr;
  const unsigned char* place = found->data + (tile.first - found->first) * value_bytes(format);
  return reinterpret_cast<std::uintptr_t>(place) % 16 == 0 ? place : nullptr;
}

void ResidentTensors::refuse_not_finite(const std::string& site, std::size_t tile) const {
  const std::uint64_t first = std::uint64_t{tile} * kTile;
  for_each_part(layout_, kFloatGroup, first, kTile, [&](const TensorPart& part) {
    std::array<double, kTile> room;
    const std::size_t count = part.offset + part.count;
    values({first, count}, std::span<double>(room.data(), count));
    for (std::size_t i = part.offset; i < count; ++i)
      if (!std::isfinite(room[i]))
        throw PeerError(site, "sent values that are not finite in tensor '" +
                                  layout_.tensors()[part.tensor].name + "'");
  });
  throw PeerError(site, "sent arrays that changed while they were read");
}

std::vector<Screened> ResidentTensors::screen(const std::string& site, Screening screening) const {
  const std::size_t tiles = count_tiles(layout_, kFloatGroup);
  std::vector<std::uint64_t> largest(tiles);
  std::vector<double> squares(tiles, std::numeric_limits<double>::quiet_NaN());
  {
    const std::lock_guard lock(mutex_);
    const OnDevice on(*device_);
    const bool want_squares = screening == Screening::squares;
    const DeviceBuffer found(*stream_, tiles * sizeof(std::uint64_t));
    const DeviceBuffer sums(*stream_, want_squares ? tiles * sizeof(double) : 0);
    const DrainAtExit drain(*stream_);
    if (tiles != 0)
      device_->check(device_->api().tensors->screen(stream_->launch(),
                                                    {table(), tiles, found.as<std::uint64_t>(),
                                                     want_squares ? sums.as<double>() : nullptr}),
                     "launching the screening of an update");
    stream_->to_host(largest.data(), found.as<void>(), found.bytes());
    stream_->to_host(squares.data(), sums.as<void>(), sums.bytes());
    stream_->synchronize();
  }
  std::vector<Screened> screened(tiles);
  for (std::size_t tile = 0; tile < tiles; ++tile) {
    screened[tile] = {std::bit_cast<double>(largest[tile]), squares[tile]};
    if (!std::isfinite(screened[tile].largest)) refuse_not_finite(site, tile);
  }
  return screened;
}

template <class Value>
void ResidentTensors::copy_values(const Tile& tile, std::span<Value> out) const {
  const std::lock_guard lock(mutex_);
  const OnDevice on(*device_);
  const DeviceBuffer gathered(*stream_, kTile * sizeof(Value));
  const DeviceBuffer list(*stream_, sizeof(GatheredTile));
  const std::size_t number = tile.first / kTile;
  const std::size_t skipped = tile.first % kTile;
  const GatheredTile wanted = {number, gathered.as<unsigned char>(), 0};
  const DrainAtExit drain(*stream_);
  stream_->to_device(list.as<void>(), &wanted, sizeof wanted);
  device_->check(
      device_->api().tensors->gather(
          stream_->launch(), {table(), 1, list.as<GatheredTile>(),
                              sizeof(Value) == 8 ? WindowCodes::f64 : WindowCodes::f32, nullptr}),
      "launching the gathering of a tile");
  stream_->to_host(out.data(), gathered.as<void>(skipped * sizeof(Value)), out.size_bytes());
  stream_->synchronize();
}

void ResidentTensors::values(const Tile& tile, std::span<float> out) const {
  copy_values(tile, out);
}

void ResidentTensors::values(const Tile& tile, std::span<double> out) const {
  copy_values(tile, out);
}

CommittedUpdate borrow_resident(const Layout& layout, const std::string& site, DeviceOwner device,
                                TensorData tensors, Owner owner, unsigned threads,
                                Screening screening) {
  std::vector<const std::byte*> places(tensors.begin(), tensors.end());
  auto values = std::make_unique<ResidentReader>(layout, std::move(device), places);
  auto screened = screen_update(layout, *values, site, threads, screening);
  return {site,
          1,
          std::move(owner),
          std::move(places),
          StoredBytes("", site, 0),
          std::move(screened),
          std::move(values)};
}

}  // namespace veilsum
