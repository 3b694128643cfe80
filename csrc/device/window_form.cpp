#include "device/window_form.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "codec/block_scales.h"
#include "codec/codecs.h"
#include "codec/format.h"
#include "device/resident.h"

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

}  // namespace

std::size_t WindowForm::code_bytes() const { return kTile * code_bits(codes) / 8; }

std::size_t WindowForm::scale_bytes() const {
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
  return values;
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
