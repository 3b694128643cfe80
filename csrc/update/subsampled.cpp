#include "update/subsampled.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "base/error.h"
#include "update/value_codec.h"
#include "update/values.h"

namespace veilsum {
namespace {

constexpr std::size_t kBlock = kTensorAlignment;

UpdateForm without_transform(const UpdateForm& form) {
  UpdateForm coded = form;
  coded.transform = nullptr;
  return coded;
}

// Calls `body(offset)` for the kept blocks of a tile, in order.
template <class Body>
void for_each_kept(const KeptTile& tile, const Body& body) {
  for (std::size_t block = 0; block < kCodedTile / kBlock; ++block)
    if (tile.blocks >> block & 1) body(block * kBlock);
}

// --- what is kept of a model --------------------------------------------------------

// The tensors of group 1 with their kept elements only. No block is in two tensors and only the
// last one of a tensor is short, so this model's own grid is the coded grid.
class KeptTensors {
 public:
  KeptTensors(const Layout& layout, TensorData tensors, const Subsample& subsample)
      : bytes_(layout.tensors().size()), layout_(kept_layout(layout, tensors, subsample)) {
    for (const TensorSpan& span : layout.group(kFloatGroup))
      pointers_.push_back(bytes_[span.tensor].data());
  }

  const Layout& layout() const { return layout_; }
  TensorData tensors() const { return pointers_; }

 private:
  Layout kept_layout(const Layout& layout, TensorData tensors, const Subsample& subsample) {
    const std::uint64_t size = layout.group_size(kFloatGroup);
    for (std::uint64_t first = 0; first < size; first += kCodedTile)
      for_each_kept(kept_tile(subsample, size, first / kCodedTile), [&](std::size_t offset) {
        for_each_part(layout, kFloatGroup, first + offset, kBlock, [&](const TensorPart& part) {
          const std::size_t width = dtype_size(layout.tensors()[part.tensor].dtype);
          const std::byte* from = tensors[part.tensor] + part.element * width;
          bytes_[part.tensor].insert(bytes_[part.tensor].end(), from, from + part.count * width);
        });
      });
    std::vector<Tensor> kept;
    for (const TensorSpan& span : layout.group(kFloatGroup)) {
      const Tensor& tensor = layout.tensors()[span.tensor];
      const std::uint64_t elements = bytes_[span.tensor].size() / dtype_size(tensor.dtype);
      kept.push_back({tensor.name, tensor.dtype, {elements}, elements});
    }
    return Layout(std::move(kept));
  }

  std::vector<std::vector<std::byte>> bytes_;
  std::vector<const std::byte*> pointers_;
  const Layout layout_;
};

// The largest finite value of a dtype that a float can hold.
double largest_value(DType dtype) {
  if (dtype == DType::f16) return 65504;
  return dtype == DType::bf16 ? 0x1.fep127 : 0x1.fffffep127;
}

// Also what is not kept must be finite: whether a site's update is sound should not depend on
// the draw.
void require_finite(const Layout& layout, TensorData tensors) {
  for (const TensorSpan& span : layout.group(kFloatGroup)) {
    const Tensor& tensor = layout.tensors()[span.tensor];
    if (const std::uint64_t bad = count_not_finite(tensor, tensors[span.tensor]))
      refuse_not_finite(tensor, bad);
  }
}

void require_room(const Layout& layout, TensorData tensors, double gain) {
  if (gain == 1) return;
  for (const TensorSpan& span : layout.group(kFloatGroup)) {
    const Tensor& tensor = layout.tensors()[span.tensor];
    const double most = largest_value(tensor.dtype) / gain;
    if (const std::uint64_t bad = count_beyond(tensor, tensors[span.tensor], most))
      throw ConfigError("tensor '" + tensor.name + "' has " + std::to_string(bad) +
                            " values that do not fit " + std::string(dtype_name(tensor.dtype)) +
                            " once a subsample is rescaled",
                        "give rescale=False, keep more, or scale the update down");
  }
}

}  // namespace

void encode_subsampled(const Layout& layout, TensorData tensors, const EncodePlan& plan,
                       const ChunkGrid& grid, std::span<std::byte* const> chunks) {
  const Subsample& subsample = *plan.form.transform->subsample;
  if (chunks.empty()) return;
  require_finite(layout, tensors);
  const KeptTensors kept(layout, tensors, subsample);
  require_room(kept.layout(), kept.tensors(), largest_gain(subsample));
  EncodePlan coded = plan;
  coded.form = without_transform(plan.form);
  value_codec(coded.form.codec).encode(kept.layout(), kept.tensors(), coded, grid, chunks);
}

SubsampledValues::SubsampledValues(const Layout& layout, std::span<const ChunkView> chunks,
                                   const UpdateForm& form)
    : layout_(layout),
      chunks_(chunks),
      subsample_(*form.transform->subsample),
      coded_(without_transform(form)) {}

KeptTile SubsampledValues::tile(std::uint64_t first) const {
  return kept_tile(subsample_, layout_.group_size(kFloatGroup), first / kCodedTile);
}

CodedTile SubsampledValues::run_at(std::uint64_t coded, std::size_t most) const {
  const ChunkView& chunk = chunks_[coded / coded_.chunk_coordinates];
  const std::size_t begin = coded - chunk.header.first;
  return {layout_, chunk, coded_, begin, std::min<std::size_t>(most, chunk.header.count - begin)};
}

void SubsampledValues::read(std::uint64_t first, std::span<float> out) const {
  const std::uint64_t size = layout_.group_size(kFloatGroup);
  const KeptTile tile = this->tile(first);
  const std::size_t begin = first % kCodedTile;
  const auto whole =
      static_cast<std::size_t>(std::min<std::uint64_t>(kCodedTile, size - (first - begin)));
  if (out.size() == whole) return read_tile(tile, out);
  std::array<float, kCodedTile> room;
  read_tile(tile, {room.data(), whole});
  std::copy_n(room.begin() + static_cast<std::ptrdiff_t>(begin), out.size(), out.begin());
}

void SubsampledValues::read_tile(const KeptTile& tile, std::span<float> out) const {
  const ValueCodec& codec = value_codec(coded_.codec);
  std::array<float, kCodedTile> room;
  for_each_run(tile, [&](const CodedTile& run, std::size_t offset) {
    codec.decode(run, {room.data() + offset, run.count});
  });
  std::fill(out.begin(), out.end(), 0.0F);
  const float* kept = room.data();
  for_each_kept(tile, [&](std::size_t offset) {
    for (std::size_t i = 0; i < kBlock; ++i)
      out[offset + i] = static_cast<float>(double{kept[i]} * tile.gain);
    kept += kBlock;
  });
}

}  // namespace veilsum
