#include "codec/subsample.h"

#include <algorithm>
#include <bit>
#include <string>

#include "base/error.h"
#include "codec/codecs.h"
#include "codec/layout.h"
#include "element/subsample.h"

namespace veilsum {
namespace {

constexpr std::uint64_t kBlock = kTensorAlignment;
constexpr std::uint64_t kTileCoordinates = kTileBlocks64 * kBlock;

}  // namespace

void require_keep(unsigned keep) {
  if (keep < 1 || keep >= kTileBlocks64)
    throw ConfigError("a subsampled update keeps 1 to 63 blocks of 64, not " +
                      std::to_string(keep));
}

std::uint64_t coded_size(const Subsample& subsample, std::uint64_t size) {
  const auto rest = static_cast<unsigned>(size % kTileCoordinates / kBlock);
  return kBlock * (size / kTileCoordinates * subsample.keep + kept_count(rest, subsample.keep));
}

KeptTile kept_tile(const Subsample& subsample, std::uint64_t size, std::uint64_t tile) {
  const std::uint64_t left = size / kBlock - tile * kTileBlocks64;
  const auto blocks = static_cast<unsigned>(std::min<std::uint64_t>(left, kTileBlocks64));
  const unsigned kept = kept_count(blocks, subsample.keep);
  return {kept_blocks(subsample.key, tile, blocks, subsample.keep, kFloatGroup),
          tile * subsample.keep * kBlock, kept * kBlock,
          subsample.rescale ? double{1} * blocks / kept : 1.0};
}

double largest_gain(const Subsample& subsample) {
  return subsample.rescale ? double{kTileBlocks64} / subsample.keep : 1.0;
}

void require_subsample_codec(std::uint16_t codec) {
  const std::uint16_t family = codec_family(codec);
  if (ring_bits(codec) != 0 || family == kCodecF32 || family == kCodecF16 || family == kCodecBf16)
    return;
  const bool steps = family == kCodecInt8 || family == kCodecInt4 || family == kCodecNf4 ||
                     family == kCodecFp4 || family == kCodecFp8E4M3 || family == kCodecFp8E5M2;
  if (!steps)
    throw ConfigError(
        "codec " + codec_name(codec) + " cannot be subsampled: what its codes mean " +
            "depends on where they lie in the model",
        "use f32, f16, bf16, int8, int4, nf4, fp4, fp8_e4m3, fp8_e5m2 or a ring codec");
  if (codec_block(codec) > kBlock)
    throw ConfigError("codec " + codec_name(codec) + " cannot be subsampled: blocks of 64 are " +
                          "kept, and a scale would be shared by some that lay far apart",
                      "use block=64");
}

}  // namespace veilsum
