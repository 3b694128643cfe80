#include "device/window_form.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <span>

#include "aggregate/tiles.h"
#include "codec/codecs.h"
#include "codec/format.h"
#include "codec/topk.h"
#include "device/resident.h"
#include "element/rotation.h"
#include "update/subsampled.h"

namespace veilsum {
namespace {

struct Kind {
  std::uint16_t family;
  WindowCodes codes;
};

constexpr Kind kDecoded[] = {
    {kCodecF32, WindowCodes::f32},          {kCodecF16, WindowCodes::f16},
    {kCodecBf16, WindowCodes::bf16},        {kCodecInt8, WindowCodes::int8},
    {kCodecInt4, WindowCodes::int4},        {kCodecNf4, WindowCodes::nf4},
    {kCodecFp4, WindowCodes::fp4},          {kCodecFp8E4M3, WindowCodes::fp8_e4m3},
    {kCodecFp8E5M2, WindowCodes::fp8_e5m2}, {kCodecSign, WindowCodes::sign},
};

// Bits of a code, in the order of WindowCodes.
constexpr unsigned kCodeBits[kWindowCodes] = {32, 64, 16, 16, 8, 4, 4, 4, 8, 8, 1};

unsigned code_bits(WindowCodes codes) { return kCodeBits[static_cast<std::size_t>(codes)]; }

WindowScales window_scales(ScaleFormat format) {
  return format == ScaleFormat::f32   ? WindowScales::f32
         : format == ScaleFormat::f16 ? WindowScales::f16
                                      : WindowScales::none;
}

// Copies what there is of `size` bytes.
void copy_padded(std::span<const std::byte> from, std::byte* to, std::size_t size) {
  const std::size_t there = std::min(from.size(), size);
  std::memcpy(to, from.data(), there);
  std::memset(to + there, 0, size - there);
}

template <class Value>
void write_window_values(const CommittedUpdate& update, const Tile& tile, std::byte* codes) {
  auto* const values = reinterpret_cast<Value*>(codes);
  update.values->values(tile, std::span<Value>(values, tile.count));
  std::fill(values + tile.count, values + kTile, Value{0});
}

void write_codes(const WindowForm& form, const CodedTile& tile, std::byte* codes,
                 std::byte* scales) {
  const unsigned bits = code_bits(form.codes);
  copy_padded(tile.chunk.codes.subspan(tile.begin * bits / 8, (tile.count * bits + 7) / 8), codes,
              form.code_bytes());
  if (form.scales == WindowScales::none) return;
  const std::size_t size = bytes_of(form.scales);
  copy_padded(tile.chunk.scales.subspan(tile.begin / form.scale_block * size,
                                        block_count(tile.count, form.scale_block) * size),
              scales, form.scale_bytes());
}

// --- forms ----------------------------------------------------------------------

constexpr unsigned kTensorBlock = kTensorAlignment;

// Coordinates that share a scale wherever they lie: tensors begin at multiples of 64.
unsigned ring_scale_block(const UpdateForm& form) {
  if (form.transform == nullptr || !form.transform->grid) return kTile;
  const std::size_t block = form.transform->grid->block();
  return block == 0 ? kTensorBlock : static_cast<unsigned>(block);
}

WindowForm packed_values(WindowPacking packing, unsigned bits) {
  WindowForm form = {WindowCodes::f32, WindowScales::none, 0};
  form.packing = packing;
  form.bits = bits;
  return form;
}

WindowForm ring_form(const UpdateForm& update) {
  WindowForm form = packed_values(WindowPacking::ring, ring_bits(update.codec));
  form.scale_block = ring_scale_block(update);
  if (update.transform != nullptr)
    form.rotation_block = static_cast<unsigned>(update.transform->rotation.block);
  return form;
}

// Of an update's own codes; nothing if no kernel decodes them.
std::optional<WindowForm> coded_form(const UpdateForm& update) {
  const std::uint16_t codec = update.codec;
  const WindowScales scales = window_scales(codec_scales(codec));
  for (const Kind& kind : kDecoded)
    if (kind.family == codec_family(codec))
      return WindowForm{kind.codes, scales, scales == WindowScales::none ? 0 : codec_block(codec)};
  if (eden_bits(codec) != 0) {
    WindowForm form = packed_values(WindowPacking::eden, eden_bits(codec));
    form.rotation_block = kRotationTile;
    return form;
  }
  if (codec_family(codec) == kCodecTopK) {
    WindowForm form = packed_values(WindowPacking::topk, kIndexBits);
    form.scales = scales;
    return form;
  }
  if (ring_bits(codec) != 0) return ring_form(update);
  return std::nullopt;
}

// The form of codes that kernels are to make values of.
WindowForm as_packed(WindowForm form) {
  if (form.packed()) return form;
  form.packing = WindowPacking::codes;
  form.bits = code_bits(form.codes);
  return form;
}

std::optional<WindowForm> subsampled_form(const SubsampledValues& kept) {
  std::optional<WindowForm> form = coded_form(kept.coded_form());
  if (!form) return form;
  form = as_packed(*form);
  form->keep = kept.keep();
  return form;
}

}  // namespace

std::size_t bytes_of(WindowScales scales) {
  return scales == WindowScales::f32 ? 4 : scales == WindowScales::f16 ? 2 : 0;
}

std::size_t WindowForm::code_bytes() const {
  // Indices of all coordinates, and one that lies before them.
  if (packing == WindowPacking::topk) return whole_words(topk_index_bytes(kTile + 1));
  return packed() ? whole_words(keep * kTensorAlignment / 8 * bits) : kTile / 8 * code_bits(codes);
}

std::size_t WindowForm::value_bytes() const { return packed() ? kTile * sizeof(float) : 0; }

std::size_t WindowForm::scale_bytes() const {
  switch (packing) {
    case WindowPacking::eden:
      return whole_words(kMostEdenBlocks * sizeof(float));
    case WindowPacking::ring:
      return whole_words(kTile / scale_block * sizeof(double));
    case WindowPacking::topk:
      return kTile * bytes_of(scales);
    default:
      return scales == WindowScales::none
                 ? 0
                 : whole_words(keep * kTensorAlignment / scale_block * bytes_of(scales));
  }
}

MeanFormat mean_format(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return MeanFormat::f16;
    case DType::bf16:
      return MeanFormat::bf16;
    case DType::f64:
      return MeanFormat::f64;
    default:
      return MeanFormat::f32;
  }
}

WindowForm window_form(const Layout& layout, const CommittedUpdate& update, const Device& device) {
  const ResidentTensors* const resident = update.values->resident();
  if (resident != nullptr && resident->device().name() == device.name()) return resident->form();
  const WindowForm values = {needs_double(layout) ? WindowCodes::f64 : WindowCodes::f32,
                             WindowScales::none, 0};
  if (const SubsampledValues* kept = update.values->subsampled())
    return subsampled_form(*kept).value_or(values);
  const std::optional<CodedTile> coded = update.values->coded(tile_at(layout, kFloatGroup, 0));
  return coded ? coded_form(coded->form).value_or(values) : values;
}

WindowForm row_form(const Layout& layout, const CommittedUpdate& update, const Device& device) {
  const WindowForm form = window_form(layout, update, device);
  const bool values = form.codes == WindowCodes::f32 || form.codes == WindowCodes::f64;
  return form.resident || values ? form : as_packed(form);
}

void write_window_tile(const WindowForm& form, const CommittedUpdate& update, const Tile& tile,
                       std::byte* codes, std::byte* scales) {
  if (form.codes == WindowCodes::f32) return write_window_values<float>(update, tile, codes);
  if (form.codes == WindowCodes::f64) return write_window_values<double>(update, tile, codes);
  write_codes(form, *update.values->coded(tile), codes, scales);
}

std::vector<WindowBatch> window_batches(const Layout& layout, const UpdateSnapshot& set,
                                        const Device& device, std::size_t most_bytes) {
  std::vector<WindowBatch> batches;
  for (std::size_t i = 0; i < set.updates.size(); ++i) {
    const WindowForm form = window_form(layout, *set.updates[i], device);
    const auto room = std::find_if(batches.begin(), batches.end(), [&](const WindowBatch& batch) {
      return batch.form == form && (batch.updates.size() + 1) * form.tile_bytes() <= most_bytes;
    });
    if (room == batches.end())
      batches.push_back({form, {i}});
    else
      room->updates.push_back(i);
  }
  return batches;
}

}  // namespace veilsum
