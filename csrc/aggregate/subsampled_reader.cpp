#include "aggregate/subsampled_reader.h"

#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "base/error.h"
#include "kernels/dispatch.h"
#include "update/subsampled.h"
#include "update/values.h"

namespace veilsum {
namespace {

double max_abs(std::span<const float> values) {
  return std::bit_cast<float>(kernels().codec.max_abs32(values.data(), values.size()));
}

// Everything by way of the values: a tile's codes may lie in two chunks, and its gain is not in
// their scales.
class SubsampledReader final : public UpdateReader {
 public:
  SubsampledReader(const Layout& layout, std::vector<ChunkView> chunks, const UpdateForm& form,
                   std::unique_ptr<UpdateReader> integers)
      : layout_(layout),
        chunks_(std::move(chunks)),
        kept_(layout, chunks_, form),
        integers_(std::move(integers)) {}

  Screened screen(const Tile& tile, const std::string& site, Screening screening) const override {
    std::array<float, kTile> room;
    const std::span<float> found(room.data(), tile.count);
    values(tile, found);
    const double largest = max_abs(found);
    if (!std::isfinite(largest))
      throw PeerError(
          site, "sent codes beyond every f32 value near coordinate " + std::to_string(tile.first));
    check_gaps(layout_, found, tile.first);
    check_limits(tile, site, found);
    if (screening == Screening::magnitudes)
      return {largest, std::numeric_limits<double>::quiet_NaN()};
    std::uint32_t pattern;
    return {largest, kernels().codec.screen_f32(found.data(), found.size(), &pattern)};
  }

  void add(const Tile& tile, double factor, std::uint64_t* sums) const override {
    std::array<float, kTile> room;
    const std::span<float> found(room.data(), tile.count);
    values(tile, found);
    kernels().codec.add_f32(found.data(), found.size(), factor, sums);
  }

  bool adds_whole_tiles() const override { return true; }

  const WireFloat* floats(const Tile&, const TensorPart&) const override { return nullptr; }
  const SubsampledValues* subsampled() const override { return &kept_; }

  void values(const Tile& tile, std::span<float> out) const override {
    kept_.read(tile.first, out);
  }
  void values(const Tile& tile, std::span<double> out) const override {
    std::array<float, kTile> room;
    values(tile, std::span<float>(room.data(), tile.count));
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = room[i];
  }

  void read(const Tile& tile, const std::string& site,
            std::span<std::int64_t> values) const override {
    integers_->read(tile, site, values);
  }

 private:
  void check_limits(const Tile& tile, const std::string& site,
                    std::span<const float> values) const {
    for_each_part(layout_, kFloatGroup, tile.first, tile.count, [&](const TensorPart& part) {
      const Tensor& tensor = layout_.tensors()[part.tensor];
      if (max_abs(values.subspan(part.offset, part.count)) > sent_limit(tensor.dtype))
        throw PeerError(site, "sent values of tensor '" + tensor.name + "' that do not fit " +
                                  std::string(dtype_name(tensor.dtype)));
    });
  }

  const Layout& layout_;
  const std::vector<ChunkView> chunks_;
  const SubsampledValues kept_;
  const std::unique_ptr<UpdateReader> integers_;
};

}  // namespace

std::unique_ptr<UpdateReader> read_subsampled(const Layout& layout, std::vector<ChunkView> chunks,
                                              const UpdateForm& form,
                                              std::unique_ptr<UpdateReader> integers) {
  return std::make_unique<SubsampledReader>(layout, std::move(chunks), form, std::move(integers));
}

}  // namespace veilsum
