// ring1 to ring64: value = step / scale, with the plan's scale; or by way of a rotation.
#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "codec/codecs.h"
#include "element/bits.h"
#include "masks/ring_chunks.h"
#include "masks/ring_words.h"
#include "update/value_codec.h"

namespace veilsum {
namespace {

// Steps of a tile as doubles.
std::span<double> read_steps(const CodedTile& tile, std::span<double, kCodedTile> room) {
  const unsigned bits = ring_bits(tile.chunk.header.codec);
  std::array<std::uint64_t, kCodedTile> words;
  const auto fields =
      tile.chunk.codes.subspan(tile.begin / 8 * bits, packed_size(tile.count, bits));
  unpack_words(fields, bits, {words.data(), tile.count});
  for (std::size_t i = 0; i < tile.count; ++i)
    room[i] = static_cast<double>(sign_extend(words[i], bits));
  return room.first(tile.count);
}

void divide(std::span<const double> steps, double scale, float* values) {
  for (std::size_t i = 0; i < steps.size(); ++i) values[i] = static_cast<float>(steps[i] / scale);
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
