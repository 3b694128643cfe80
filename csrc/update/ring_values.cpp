// ring1 to ring64: value = step / scale, with the plan's scale.
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

class RingValues final : public ValueCodec {
 public:
  void decode(const CodedTile& tile, std::span<float> values) const override {
    const unsigned bits = ring_bits(tile.chunk.header.codec);
    std::array<std::uint64_t, kCodedTile> words;
    const auto fields =
        tile.chunk.codes.subspan(tile.begin / 8 * bits, packed_size(values.size(), bits));
    unpack_words(fields, bits, {words.data(), values.size()});
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] =
          static_cast<float>(static_cast<double>(sign_extend(words[i], bits)) / tile.form.scale);
  }

  void encode(const Layout& layout, TensorData tensors, const EncodePlan& plan,
              const ChunkGrid& grid, std::span<std::byte* const> chunks) const override {
    const std::vector<double> gains(layout.group(kFloatGroup).size(), plan.form.scale);
    const std::vector<double> limits(gains.size(), plan.limit);
    const RingChunkPlan ring = ring_chunk_plan(ring_bits(grid.codec), grid, {}, plan.threads);
    write_step_chunks(layout, tensors, {gains, limits, false, plan.rounding}, ring, chunks);
  }
};

constexpr RingValues kRing;

}  // namespace

const ValueCodec& ring_values() { return kRing; }

}  // namespace veilsum
