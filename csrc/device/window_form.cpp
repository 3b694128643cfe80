#include "device/window_form.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "codec/block_scales.h"
#include "codec/codecs.h"
#include "codec/eden.h"
#include "codec/format.h"
#include "device/resident.h"
#include "element/bits.h"

namespace veilsum {
namespace {

struct Kind {
  std::uint16_t family;
  WindowCodes codes;
};

constexpr Kind kDecoded[] = {
    {kCodecF16, WindowCodes::f16},          {kCodecBf16, WindowCodes::bf16},
    {kCodecInt8, WindowCodes::int8},        {kCodecInt4, WindowCodes::int4},
    {kCodecNf4, WindowCodes::nf4},          {kCodecFp4, WindowCodes::fp4},
    {kCodecFp8E4M3, WindowCodes::fp8_e4m3}, {kCodecFp8E5M2, WindowCodes::fp8_e5m2},
    {kCodecSign, WindowCodes::sign},
};

// Bits of a code, in the order of WindowCodes.
constexpr unsigned kCodeBits[kWindowCodes] = {32, 64, 16, 16, 8, 4, 4, 4, 8, 8, 1};

unsigned code_bits(WindowCodes codes) { return kCodeBits[static_cast<std::size_t>(codes)]; }

WindowScales window_scales(ScaleFormat format) {
  return format == ScaleFormat::f32   ? WindowScales::f32
         : format == ScaleFormat::f16 ? WindowScales::f16
                                      : WindowScales::none;
}

std::size_t bytes_of(WindowScales scales) {
  return scales == WindowScales::f32 ? 4 : scales == WindowScales::f16 ? 2 : 0;
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

// --- packed tiles ----------------------------------------------------------------

constexpr unsigned kTensorBlock = kTensorAlignment;

// Coordinates that share a scale wherever they lie: tensors begin at multiples of 64.
unsigned ring_scale_block(const UpdateForm& form) {
  if (form.transform == nullptr || !form.transform->grid) return kTile;
  const std::size_t block = form.transform->grid->block();
  return block == 0 ? kTensorBlock : static_cast<unsigned>(block);
}

std::optional<WindowForm> packed_form(const CodedTile& tile) {
  WindowForm form = {WindowCodes::f32, WindowScales::none, 0};
  const std::uint16_t codec = tile.chunk.header.codec;
  if (eden_bits(codec) != 0) {
    form.packing = WindowPacking::eden;
    form.bits = eden_bits(codec);
    form.rotation_block = kRotationTile;
    return form;
  }
  if (ring_bits(codec) == 0) return std::nullopt;
  form.packing = WindowPacking::ring;
  form.bits = ring_bits(codec);
  form.scale_block = ring_scale_block(tile.form);
  if (tile.form.transform != nullptr)
    form.rotation_block = static_cast<unsigned>(tile.form.transform->rotation.block);
  return form;
}

void write_eden_scales(const CodedTile& tile, std::byte* scales) {
  std::size_t blocks = 0;
  for_each_eden_block(tile.count, [&](std::size_t, std::size_t, std::size_t) { ++blocks; });
  copy_padded(tile.chunk.scales.subspan(tile.begin / kRotationTile * 4, blocks * 4), scales,
              kMostEdenBlocks * 4);
}

// Beyond the end, where steps are zero, any scale will do that can divide.
void write_ring_scales(const WindowForm& form, const CodedTile& tile, std::byte* bytes) {
  auto* const scales = reinterpret_cast<double*>(bytes);
  const Transform* const transform = tile.form.transform.get();
  if (transform == nullptr || !transform->grid) {
    scales[0] = tile.form.scale;
    return;
  }
  std::fill_n(scales, kTile / form.scale_block, 1.0);
  transform->grid->for_each_stretch(tile.chunk.header.first + tile.begin, tile.count,
                                    [&](std::size_t offset, std::size_t count, std::size_t entry) {
                                      std::fill_n(scales + offset / form.scale_block,
                                                  block_count(count, form.scale_block),
                                                  transform->scales[entry]);
                                    });
}

void write_packed(const WindowForm& form, const CodedTile& tile, std::byte* codes,
                  std::byte* scales) {
  copy_padded(tile.chunk.codes.subspan(packed_size(tile.begin, form.bits),
                                       packed_size(tile.count, form.bits)),
              codes, form.code_bytes());
  if (form.packing == WindowPacking::eden)
    write_eden_scales(tile, scales);
  else
    write_ring_scales(form, tile, scales);
}

}  // namespace

std::size_t WindowForm::code_bytes() const {
  return kTile / 8 * (packed() ? bits : code_bits(codes));
}

std::size_t WindowForm::value_bytes() const { return packed() ? kTile * sizeof(float) : 0; }

std::size_t WindowForm::scale_bytes() const {
  // A multiple of 16 bytes: every tile's scales begin at one.
  if (packing == WindowPacking::eden) return (kMostEdenBlocks * sizeof(float) + 15) / 16 * 16;
  if (packing == WindowPacking::ring)
    return std::max<std::size_t>(16, kTile / scale_block * sizeof(double));
  return scales == WindowScales::none ? 0 : kTile / scale_block * bytes_of(scales);
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
  const auto first = Tile{0, std::min<std::size_t>(kTile, layout.group_size(kFloatGroup))};
  const std::optional<CodedTile> coded = update.values->coded(first);
  if (!coded) return values;
  const std::uint16_t codec = coded->chunk.header.codec;
  for (const Kind& kind : kDecoded) {
    if (kind.family != codec_family(codec)) continue;
    const WindowScales scales = window_scales(codec_scales(codec));
    return {kind.codes, scales, scales == WindowScales::none ? 0 : codec_block(codec)};
  }
  return packed_form(*coded).value_or(values);
}

PackedTile packed_tile(const WindowForm& form, const CommittedUpdate& update, const Tile& tile) {
  const CodedTile coded = *update.values->coded(tile);
  PackedTile packed = {};
  packed.first = tile.first;
  packed.count = static_cast<unsigned>(tile.count);
  if (form.packing == WindowPacking::eden)
    packed.key = eden_rotation(coded.chunk.header).key;
  else if (form.rotation_block != 0)
    packed.key = coded.form.transform->rotation.key;
  return packed;
}

void write_window_tile(const WindowForm& form, const CommittedUpdate& update, const Tile& tile,
                       std::byte* codes, std::byte* scales) {
  if (form.packed()) return write_packed(form, *update.values->coded(tile), codes, scales);
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
