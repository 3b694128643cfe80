// Codecs and the chunks of plain updates; chunks of ring words are in register_masks.cpp.
#include <vector>

#include "bindings/arrays.h"
#include "bindings/chunks.h"
#include "bindings/recycled.h"
#include "bindings/register.h"
#include "bindings/tensors.h"
#include "bindings/update_form.h"
#include "codec/checksum.h"
#include "codec/codecs.h"
#include "update/decode.h"
#include "update/encode.h"

namespace veilsum {
namespace {

std::size_t chunk_size(py::object codec, py::object coordinates) {
  return chunk_bytes(to_integer<std::uint16_t>("codec", codec),
                     to_integer<std::uint64_t>("coordinates", coordinates));
}

py::list encode_chunks(py::object layout, py::object arrays, py::object codec, double scale,
                       double limit, py::object rounding, py::object least_error,
                       py::object plan_digest, py::object update_id, py::object chunk_coordinates,
                       py::object threads, py::object transform, py::object clip) {
  const Layout& model = instance<Layout>("layout", layout);
  const TensorArrays tensors(model, arrays);
  const EncodePlan plan = {
      to_form(codec, scale, plan_digest, update_id, chunk_coordinates, transform),
      limit,
      to_rounding(rounding),
      to_bool("least_error", least_error),
      to_integer<unsigned>("threads", threads, 1, kMaxThreads),
      to_bool("clip", clip)};
  NewChunks chunks(update_chunk_sizes(model, plan));
  {
    py::gil_scoped_release release;
    encode_update(model, tensors.pointers(), plan, chunks.places());
  }
  return chunks.take();
}

std::uint64_t check(py::object chunk, py::object codec, py::object group, py::object group_size,
                    py::object masked, py::object plan_digest, py::object update_id,
                    py::object chunk_coordinates, py::object transforms) {
  const BufferView bytes("chunk", chunk);
  const ChunkGrid grid = {
      .codec = to_integer<std::uint16_t>("codec", codec),
      .group = to_integer<std::uint32_t>("group", group),
      .group_size = to_integer<std::uint64_t>("group_size", group_size),
      .masked = to_bool("masked", masked),
      .plan = to_plan_tag(plan_digest),
      .update_id = to_integer<std::uint64_t>("update_id", update_id),
      .chunk_coordinates = to_integer<std::uint64_t>("chunk_coordinates", chunk_coordinates),
      .transforms = to_integer<std::uint16_t>("transforms", transforms)};
  require_chunk_coordinates(grid.chunk_coordinates);
  codec_name(grid.codec);  // refuses an unknown one as the caller's mistake
  py::gil_scoped_release release;
  return check_chunk(bytes.bytes(), grid).header.index;
}

std::uint32_t checksum(py::object buffers, py::object threads) {
  const std::vector<BufferView> views = buffer_views("buffers", buffers);
  const auto most = to_integer<unsigned>("threads", threads, 1, kMaxThreads);
  py::gil_scoped_release release;
  return checksum_all(spans_of(views), most);
}

// Uninitialised arrays of the layout's shapes; bf16 tensors as float32.
class DecodedArrays {
 public:
  explicit DecodedArrays(const Layout& layout) {
    for (const Tensor& tensor : layout.tensors()) {
      py::array array =
          recycled_array(tensor, tensor.dtype == DType::bf16 ? DType::f32 : tensor.dtype);
      places_.push_back(static_cast<std::byte*>(array.mutable_data()));
      list_.append(std::move(array));
    }
  }
  MutableTensorData places() const { return places_; }
  py::list take() { return std::move(list_); }

 private:
  py::list list_;
  std::vector<std::byte*> places_;
};

py::list decode_chunks(py::object layout, py::object chunks, py::object codec, double scale,
                       py::object plan_digest, py::object update_id, py::object chunk_coordinates,
                       py::object transform, py::object threads) {
  const Layout& model = instance<Layout>("layout", layout);
  const std::vector<BufferView> views = buffer_views("chunks", chunks);
  const UpdateForm form =
      to_form(codec, scale, plan_digest, update_id, chunk_coordinates, transform);
  const auto most = to_integer<unsigned>("threads", threads, 1, kMaxThreads);
  std::vector<ChunkView> checked;
  {
    // Before anything is allocated by a layout that may itself be foreign.
    py::gil_scoped_release release;
    checked = check_update(model, spans_of(views), form, most);
  }
  DecodedArrays arrays(model);
  {
    py::gil_scoped_release release;
    decode_update(model, checked, form, arrays.places(), most);
  }
  return arrays.take();
}

}  // namespace

void register_codec(py::module_& module) {
  module.def(
      "codec_number", [](const std::string& name) { return codec_number(name); }, py::arg("name"));
  module.def(
      "codec_name",
      [](py::object number) { return codec_name(to_integer<std::uint16_t>("number", number)); },
      py::arg("number"));
  module.def(
      "require_codec",
      [](py::object layout, py::object codec) {
        require_float_codec(to_integer<std::uint16_t>("codec", codec));
        require_blocks_fit(instance<Layout>("layout", layout),
                           to_integer<std::uint16_t>("codec", codec));
      },
      py::arg("layout"), py::arg("codec"));
  module.def("checksum", &checksum, py::arg("buffers"), py::kw_only(), py::arg("threads"));
  module.def("chunk_size", &chunk_size, py::arg("codec"), py::arg("coordinates"));
  module.def("encode_chunks", &encode_chunks, py::arg("layout"), py::arg("arrays"), py::kw_only(),
             py::arg("codec"), py::arg("scale"), py::arg("limit"), py::arg("rounding"),
             py::arg("least_error"), py::arg("plan_digest"), py::arg("update_id"),
             py::arg("chunk_coordinates"), py::arg("threads"), py::arg("transform") = py::none(),
             py::arg("clip") = false);
  module.def("check_chunk", &check, py::arg("chunk"), py::kw_only(), py::arg("codec"),
             py::arg("group"), py::arg("group_size"), py::arg("masked"), py::arg("plan_digest"),
             py::arg("update_id"), py::arg("chunk_coordinates"), py::arg("transforms") = 0);
  module.def("decode_chunks", &decode_chunks, py::arg("layout"), py::arg("chunks"), py::kw_only(),
             py::arg("codec"), py::arg("scale"), py::arg("plan_digest"), py::arg("update_id"),
             py::arg("chunk_coordinates"), py::arg("transform") = py::none(),
             py::arg("threads") = 1);
}

}  // namespace veilsum
