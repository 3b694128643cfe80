#include "update/form.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"
#include "codec/codecs.h"

namespace veilsum {
namespace {

bool is_usual(double scale) { return std::isfinite(scale) && scale >= 0x1p-1022; }

}  // namespace

void require_form(const UpdateForm& form) {
  require_float_codec(form.codec);
  require_chunk_coordinates(form.chunk_coordinates);
  const bool ring = ring_bits(form.codec) != 0;
  const Transform* transform = form.transform.get();
  if (is_subsampled(form))
    require_subsample_codec(form.codec);
  else if (transform != nullptr && !ring)
    throw ConfigError("codec " + codec_name(form.codec) + " has no rotation and no table of scales",
                      "use a ring codec");
  const bool scaled = ring && (transform == nullptr || !transform->grid);
  const bool fits = scaled ? is_usual(form.scale) : form.scale == 0;
  if (!fits)
    throw ConfigError("codec " + codec_name(form.codec) + " needs a scale " +
                      (scaled ? "that is finite and above 0" : "of 0") + ", got " +
                      std::to_string(form.scale));
  if (transform != nullptr &&
      !std::all_of(transform->scales.begin(), transform->scales.end(), is_usual))
    throw ConfigError("a scale of the table is not finite and above 0");
}

bool is_rotated(const UpdateForm& form) {
  return form.transform != nullptr && form.transform->rotation.block != 0;
}

bool is_subsampled(const UpdateForm& form) {
  return form.transform != nullptr && form.transform->subsample.has_value();
}

void require_blocks_fit(const Layout& layout, std::uint16_t codec) {
  const unsigned block = codec_block(codec);
  if (block <= kTensorAlignment) return;
  for (const TensorSpan& span : layout.group(kFloatGroup))
    if (span.first % block != 0 && span.elements != 0)
      throw ConfigError("tensor '" + layout.tensors()[span.tensor].name + "' starts inside a " +
                            "block of codec " + codec_name(codec),
                        "use block=64: tensors start on multiples of that");
}

ChunkGrid update_grid(const Layout& layout, const UpdateForm& form, int group) {
  const std::uint64_t size = layout.group_size(group);
  const bool coded = group == kFloatGroup && is_subsampled(form);
  return {.codec = group == kFloatGroup ? form.codec : kCodecI64,
          .group = static_cast<std::uint32_t>(group),
          .group_size = coded ? coded_size(*form.transform->subsample, size) : size,
          .masked = false,
          .plan = form.plan,
          .update_id = form.update_id,
          .chunk_coordinates = form.chunk_coordinates,
          .transforms = group == kFloatGroup && form.transform != nullptr
                            ? form.transform->chunk_flags()
                            : std::uint16_t{0}};
}

std::size_t count_chunks(const Layout& layout, const UpdateForm& form) {
  return update_grid(layout, form, kFloatGroup).chunks() +
         update_grid(layout, form, kIntegerGroup).chunks();
}

}  // namespace veilsum
