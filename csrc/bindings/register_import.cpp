// What other formats say, put into chunks as it is.
#include "bindings/arrays.h"
#include "bindings/chunks.h"
#include "bindings/register.h"
#include "bindings/update_form.h"
#include "codec/layout.h"
#include "update/assemble.h"

namespace veilsum {
namespace {

py::list assemble(py::object layout, py::object scales, py::object codes, py::object codec,
                  py::object plan_digest, py::object update_id, py::object chunk_coordinates) {
  const Layout& model = instance<Layout>("layout", layout);
  const BufferView scale_view("scales", scales);
  const BufferView code_view("codes", codes);
  const UpdateForm form = to_form(codec, 0, plan_digest, update_id, chunk_coordinates, py::none());
  NewChunks chunks(
      assembled_sizes(model, form, scale_view.bytes().size(), code_view.bytes().size()));
  {
    py::gil_scoped_release release;
    assemble_chunks(model, form, scale_view.bytes(), code_view.bytes(), chunks.places());
  }
  return chunks.take();
}

}  // namespace

void register_import(py::module_& module) {
  module.def("assemble_chunks", &assemble, py::arg("layout"), py::arg("scales"), py::arg("codes"),
             py::kw_only(), py::arg("codec"), py::arg("plan_digest"), py::arg("update_id"),
             py::arg("chunk_coordinates"));
}

}  // namespace veilsum
