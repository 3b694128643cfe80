// C++ exceptions -> the classes of veilsum.errors.
#include <exception>
#include <new>
#include <string>

#include "base/error.h"
#include "bindings/register.h"

namespace veilsum {
namespace {

namespace py = pybind11;

// A message may quote bytes of a peer that are not UTF-8.
py::str to_text(const std::string& text) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "backslashreplace"));
}

template <class... Arguments>
void raise(const char* name, const Error& error, const Arguments&... arguments) {
  const py::object type = py::module_::import("veilsum.errors").attr(name);
  const py::object hint = error.hint().empty() ? py::none() : py::object(to_text(error.hint()));
  const py::object exception = type(arguments..., to_text(error.what()), py::arg("hint") = hint);
  PyErr_SetObject(type.ptr(), exception.ptr());
}

void translate(std::exception_ptr pointer) {
  try {
    std::rethrow_exception(pointer);
  } catch (const PeerError& error) {
    raise("PeerError", error, to_text(error.site()));
  } catch (const ConfigError& error) {
    raise("ConfigError", error);
  } catch (const DecodeError& error) {
    raise("DecodeError", error);
  } catch (const DeviceError& error) {
    raise("DeviceError", error);
  }
}

}  // namespace

void register_errors(py::module_&) { py::register_local_exception_translator(translate); }

void set_python_error() {
  try {
    translate(std::current_exception());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

}  // namespace veilsum
