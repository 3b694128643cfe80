// Arguments and results of functions that deal in chunks.
#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/secrets.h"
#include "codec/chunk.h"
#include "element/philox.h"

namespace veilsum {

inline constexpr unsigned kMaxThreads = 1024;

inline PlanTag to_plan_tag(py::handle plan_digest) {
  const BufferView digest = fixed_bytes("plan_digest", plan_digest, 32);
  PlanTag tag;
  std::copy_n(digest.bytes().begin(), tag.size(), tag.begin());
  return tag;
}

// The first 8 of 32 secret bytes as a Philox key.
inline std::optional<PhiloxKey> to_rounding(py::handle rounding) {
  if (rounding.is_none()) return std::nullopt;
  const auto secret = to_secret("rounding", rounding);
  if (secret->size() != 32)
    throw ConfigError("rounding must have 32 bytes, got " + std::to_string(secret->size()));
  PhiloxKey key;
  std::copy_n(std::as_const(*secret).bytes().data(), sizeof key,
              reinterpret_cast<std::byte*>(&key));
  return key;
}

// Python bytes objects that the core writes before anybody else sees them: a chunk is
// never copied.
class NewChunks {
 public:
  explicit NewChunks(std::span<const std::size_t> sizes) {
    for (const std::size_t size : sizes) {
      auto bytes = py::reinterpret_steal<py::object>(
          PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
      if (!bytes) throw py::error_already_set();
      places_.push_back(reinterpret_cast<std::byte*>(PyBytes_AS_STRING(bytes.ptr())));
      list_.append(std::move(bytes));
    }
  }
  std::span<std::byte* const> places() const { return places_; }
  py::list take() { return std::move(list_); }

 private:
  py::list list_;
  std::vector<std::byte*> places_;
};

}  // namespace veilsum
