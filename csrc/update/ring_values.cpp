// ring1 to ring64: value = step / scale, with the plan's scale; or by way of a rotation.
#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "codec/codecs.h"
#include "element/bits.h"
#include "kernels/dispatch.h"
#include "masks/ring_chunks.h"
#include "update/value_codec.h"

namespace veilsum {
namespace {

void unpack(const std::byte* fields, unsigned bits, std::span<double> steps) {
  kernels().ring.unpack_steps(reinterpret_cast<const unsigned char*>(fields), steps.size(), bits,
                              steps.data());
}

// The chunk's last fields, from a copy with slack behind them.
void unpack_last(std::span<const std::byte> fields, unsigned bits, std::span<double> steps) {
  std::array<std::byte, kCodedTile * kMaxRingBits / 8 + kReadSlack> copy;
  std::fill(std::copy(fields.begin(), fields.end(), copy.begin()), copy.end(), std::byte{0});
  unpack(copy.data(), bits, steps);
}

// Steps of a tile as doubles.
std::span<double> read_steps(const CodedTile& tile, std::span<double, kCodedTile> room) {
  const unsigned bits = ring_bits(tile.chunk.header.codec);
  const std::span<double> steps = room.first(tile.count);
  const auto rest = tile.chunk.codes.subspan(tile.begin / 8 * bits);
  const std::size_t size = packed_size(tile.count, bits);
  if (rest.size() < size + kReadSlack)
    unpack_last(rest.first(size), bits, steps);
  else
    unpack(rest.data(), bits, steps);
  return steps;
}

void divide(std::span<const double> steps, double scale, float* values) {
  kernels().ring.divide_steps(steps.data(), steps.size(), scale, values);
}

// A rotation leaves noise between tensors, which nobody sent and no norm should count.
void clear_gaps(const Layout& layout, std::uint64_t first, std::span<float> values) {
  std::size_t end = 0;  // of the part before
  for_each_part(layout, kFloatGroup, first, values.size(), [&](const TensorPart& part) {
    std::fill(values.begin() + end, values.begin() + part.offset, 0.0f);
    end = part.offset + part.count;
  });
  std::fill(values.begin() + end, values.end(), 0.0f);
}

// What write_step_chunks needs, from a plan with a transform or without.
struct Steps {
  Steps(const Layout& layout, const EncodePlan& plan)
      : transform(plan.form.transform.get()),
        grid(transform != nullptr && transform->grid ? *transform->grid : ScaleGrid(layout)),
        gains(transform != nullptr && transform->grid
                  ? transform->scales
                  : std::vector<double>(grid.entries(), plan.form.scale)),
        limits(transform == nullptr ? std::vector<double>(grid.entries(), plan.limit)
                                    : transform->limits),
        rounding(plan.rounding),
        clip(plan.clip) {}

  StepPlan plan() const {
    if (transform == nullptr) return {gains, limits, clip, rounding, grid};
    return {gains, limits, clip, rounding, grid, transform->rotation, transform->rotated_limit};
  }

  const Transform* transform;
  ScaleGrid grid;
  std::vector<double> gains;
  std::vector<double> limits;
  std::optional<PhiloxKey> rounding;
  bool clip;
};

class RingValues final : public ValueCodec {
 public:
  // In double up to the last division, so that wide words keep their digits.
  void decode(const CodedTile& tile, std::span<float> values) const override {
    std::array<double, kCodedTile> room;
    const std::span<double> steps = read_steps(tile, room);
    const Transform* transform = tile.form.transform.get();
    if (transform == nullptr) return divide(steps, tile.form.scale, values.data());
    const std::uint64_t first = tile.chunk.header.first + tile.begin;
    unrotate(transform->rotation, first, steps);
    divide_by_table(tile, steps, values);
    if (transform->rotation.block != 0) clear_gaps(tile.layout, first, values);
  }

  // Division and rounding keep the order, so the largest step has the largest value.
  double largest(const CodedTile& tile) const override {
    if (tile.form.transform != nullptr) return ValueCodec::largest(tile);
    std::array<double, kCodedTile> room;
    const std::span<double> steps = read_steps(tile, room);
    const std::uint64_t bits = kernels().codec.max_abs64(steps.data(), steps.size());
    return static_cast<float>(std::bit_cast<double>(bits) / tile.form.scale);
  }

  void divide_by_table(const CodedTile& tile, std::span<const double> steps,
                       std::span<float> values) const {
    const Transform* transform = tile.form.transform.get();
    if (!transform->grid) return divide(steps, tile.form.scale, values.data());
    const std::uint64_t first = tile.chunk.header.first + tile.begin;
    transform->grid->for_each_stretch(
        first, tile.count, [&](std::size_t offset, std::size_t count, std::size_t entry) {
          divide(steps.subspan(offset, count), transform->scales[entry], values.data() + offset);
        });
  }

  void encode(const Layout& layout, TensorData tensors, const EncodePlan& plan,
              const ChunkGrid& grid, std::span<std::byte* const> chunks) const override {
    const Steps steps(layout, plan);
    const RingChunkPlan ring = ring_chunk_plan(ring_bits(grid.codec), grid, {}, plan.threads);
    write_step_chunks(layout, tensors, steps.plan(), ring, chunks);
  }
};

constexpr RingValues kRing;

}  // namespace

const ValueCodec& ring_values() { return kRing; }

}  // namespace veilsum
