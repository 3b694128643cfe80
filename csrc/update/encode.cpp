#include "update/encode.h"

#include <string>

#include "base/error.h"
#include "base/float_environment.h"
#include "base/parallel.h"
#include "codec/codecs.h"
#include "update/subsampled.h"
#include "update/value_codec.h"

namespace veilsum {
namespace {

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

void encode_integers(const Layout& layout, TensorData tensors, const EncodePlan& plan,
                     const ChunkGrid& grid, std::span<std::byte* const> chunks) {
  parallel_for(chunks.size(), 1, plan.threads, [&](const Range& range) {
    const ChunkHeader header = grid.header(range.index);
    std::vector<std::int64_t> values(header.count);
    gather(layout, tensors, header.first, values);
    write_chunk(header, {}, bytes_of(values), chunks[range.index]);
  });
}

void append_sizes(const ChunkGrid& grid, std::vector<std::size_t>& sizes) {
  for (std::uint64_t i = 0; i < grid.chunks(); ++i)
    sizes.push_back(chunk_bytes(grid.codec, grid.header(i).count));
}

}  // namespace

std::vector<std::size_t> update_chunk_sizes(const Layout& layout, const EncodePlan& plan) {
  require_form(plan.form);
  if (ring_bits(plan.form.codec) == 0 && plan.limit != 0)
    throw ConfigError("codec " + codec_name(plan.form.codec) + " has no limit, got " +
                      std::to_string(plan.limit));
  require_blocks_fit(layout, plan.form.codec);
  std::vector<std::size_t> sizes;
  append_sizes(update_grid(layout, plan.form, kFloatGroup), sizes);
  append_sizes(update_grid(layout, plan.form, kIntegerGroup), sizes);
  return sizes;
}

void encode_update(const Layout& layout, TensorData tensors, const EncodePlan& plan,
                   std::span<std::byte* const> chunks) {
  const FloatEnvironment exact;
  const ChunkGrid floats = update_grid(layout, plan.form, kFloatGroup);
  const auto first = chunks.first(floats.chunks());
  if (is_subsampled(plan.form))
    encode_subsampled(layout, tensors, plan, floats, first);
  else
    value_codec(plan.form.codec).encode(layout, tensors, plan, floats, first);
  encode_integers(layout, tensors, plan, update_grid(layout, plan.form, kIntegerGroup),
                  chunks.subspan(first.size()));
}

}  // namespace veilsum
