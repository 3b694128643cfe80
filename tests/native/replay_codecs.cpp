// Values to chunks and back.
#include <optional>

#include "kernels/dispatch.h"
#include "replay.h"
#include "update/decode.h"

namespace veilsum::replay {
namespace {

std::optional<PhiloxKey> read_rounding(Record& record) {
  const std::vector<std::uint32_t> words = record.numbers<std::uint32_t>();
  if (words.empty()) return std::nullopt;
  return PhiloxKey{{words.at(0), words.at(1)}};
}

std::size_t decoded_bytes(const Tensor& tensor) {
  return tensor.elements * (tensor.dtype == DType::bf16 ? 4 : dtype_size(tensor.dtype));
}

}  // namespace

UpdateForm read_form(Record& record) {
  UpdateForm form{};
  form.codec = record.number<std::uint16_t>();
  form.scale = record.number<double>();
  form.plan = record.number<PlanTag>();
  form.update_id = record.number<std::uint64_t>();
  form.chunk_coordinates = record.number<std::uint64_t>();
  return form;
}

std::vector<const std::byte*> tensor_places(const Layout& layout, Bytes tensors) {
  std::vector<const std::byte*> places;
  std::size_t begin = 0;
  for (const Tensor& tensor : layout.tensors()) {
    places.push_back(tensors.data() + begin);
    begin += tensor.elements * dtype_size(tensor.dtype);
  }
  if (begin != tensors.size()) throw DecodeError("tensors of the wrong size");
  return places;
}

std::vector<std::byte*> tensor_places(const Layout& layout, std::vector<std::byte>& tensors) {
  std::vector<std::byte*> places;
  std::size_t begin = 0;
  for (const Tensor& tensor : layout.tensors()) {
    places.push_back(tensors.data() + begin);
    begin += tensor.elements * dtype_size(tensor.dtype);
  }
  return places;
}

std::size_t tensor_bytes(const Layout& layout) {
  std::size_t bytes = 0;
  for (const Tensor& tensor : layout.tensors()) bytes += tensor.elements * dtype_size(tensor.dtype);
  return bytes;
}

std::vector<Bytes> split_chunks(const Layout& layout, const UpdateForm& form, Bytes chunks) {
  std::vector<Bytes> parts;
  std::size_t begin = 0;
  for (const std::size_t size : update_chunk_sizes(layout, {form, 0, std::nullopt, false, 1})) {
    if (size > chunks.size() - begin) throw DecodeError("chunks of the wrong size");
    parts.push_back(chunks.subspan(begin, size));
    begin += size;
  }
  if (begin != chunks.size()) throw DecodeError("chunks of the wrong size");
  return parts;
}

void replay_encoding(Record& record) {
  const Layout layout = Layout::parse(record.bytes());
  EncodePlan plan{read_form(record), record.number<double>(), read_rounding(record), false, 1};
  const std::vector<std::byte> tensors = record.copy();
  const Bytes expected = record.bytes();
  for (plan.threads = 1; plan.threads <= 2; ++plan.threads) {
    std::vector<std::byte> encoded(expected.size());
    std::vector<std::byte*> chunks;
    for (const Bytes chunk : split_chunks(layout, plan.form, encoded))
      chunks.push_back(const_cast<std::byte*>(chunk.data()));
    encode_update(layout, tensor_places(layout, tensors), plan, chunks);
    require_equal("encoded chunks", encoded, expected);
  }
}

// Values of a quarter, a half and three quarters of a step, at coordinates that no model in memory
// has. A step says whether the uniform was large enough.
void replay_rounding(Record& record) {
  const auto first = record.number<std::uint64_t>();
  const auto group = record.number<std::uint32_t>();
  const std::optional<PhiloxKey> key = read_rounding(record);
  const auto values = record.numbers<float>();
  const Bytes expected = record.bytes();
  const RingKernels& ring = kernels().ring;
  const StepRule rule = {1, 1, true, *key, group};
  std::vector<std::uint32_t> words(values.size());
  ring.steps32_f32(values.data(), values.size(), first, rule, words.data());
  require_equal("steps of floats", bytes_of(words), expected);
  const std::vector<double> wide(values.begin(), values.end());
  ring.steps32_f64(wide.data(), wide.size(), first, rule, words.data());
  require_equal("steps of doubles", bytes_of(words), expected);
  std::vector<std::int8_t> codes(values.size());
  const std::vector<float> scales(values.size(), 1.0F);
  kernels().block.encode_steps(values.data(), {values.size(), 64}, first,
                               {true, *key, group, false}, scales.data(), 7, codes.data());
  words.assign(codes.begin(), codes.end());
  require_equal("codes", bytes_of(words), expected);
}

void replay_decoding(Record& record) {
  const Layout layout = Layout::parse(record.bytes());
  const UpdateForm form = read_form(record);
  const std::vector<Bytes> chunks = split_chunks(layout, form, record.bytes());
  const Bytes expected = record.bytes();
  std::vector<std::byte> tensors(expected.size());
  std::vector<std::byte*> places;
  std::size_t begin = 0;
  for (const Tensor& tensor : layout.tensors()) {
    places.push_back(tensors.data() + begin);
    begin += decoded_bytes(tensor);
  }
  if (begin != expected.size()) throw DecodeError("tensors of the wrong size");
  decode_update(layout, check_update(layout, chunks, form), form, places);
  require_equal("decoded tensors", tensors, expected);
}

}  // namespace veilsum::replay
