// Golden vectors: what one machine computed, to be computed again on another.
//
// A file is a list of records, a record a list of fields, a field LE32 length and bytes. The
// first field of a record is its kind. tests/native/make_vectors.py writes them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "aggregate/mean.h"
#include "base/bytes.h"
#include "base/error.h"
#include "codec/layout.h"
#include "update/encode.h"

namespace veilsum::replay {

using Bytes = std::span<const std::byte>;

// The fields of one record, taken in order.
class Record {
 public:
  explicit Record(std::vector<Bytes> fields) : fields_(std::move(fields)) {}

  Bytes bytes() {
    if (next_ == fields_.size()) throw DecodeError("the record has too few fields");
    return fields_[next_++];
  }
  bool at_end() const { return next_ == fields_.size(); }

  std::string text() {
    const Bytes field = bytes();
    return {reinterpret_cast<const char*>(field.data()), field.size()};
  }

  template <class T>
  T number() {
    T value;
    const Bytes field = bytes();
    if (field.size() != sizeof value) throw DecodeError("a number has the wrong size");
    std::memcpy(&value, field.data(), sizeof value);
    return value;
  }

  template <class T>
  std::vector<T> numbers() {
    const Bytes field = bytes();
    std::vector<T> values(field.size() / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), field.data(), values.size() * sizeof(T));
    return values;
  }

  // Bytes that a caller may keep at any address.
  std::vector<std::byte> copy() {
    const Bytes field = bytes();
    return {field.begin(), field.end()};
  }

 private:
  std::vector<Bytes> fields_;
  std::size_t next_ = 0;
};

// Throws DecodeError, saying `what` differs and where.
void require_equal(std::string_view what, Bytes found, Bytes expected);

template <class T>
Bytes bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

// Each works through one record with the kernels in use.
void replay_masks(Record& record);
void replay_packing(Record& record);
void replay_encoding(Record& record);
void replay_decoding(Record& record);
void replay_rounding(Record& record);
void replay_mean(Record& record);
void replay_rules(Record& record);

// One site's update: tensors, or the chunks of a form.
struct SiteUpdate {
  std::string site;
  std::int64_t weight;
  bool encoded;
  UpdateForm form;
  Bytes content;
};
std::vector<SiteUpdate> read_updates(Record& record);
void add_update(MeanAggregator& mean, const SiteUpdate& update);

// Fields that several kinds begin with.
UpdateForm read_form(Record& record);
// One pointer per tensor into their bytes, which follow each other without padding.
std::vector<const std::byte*> tensor_places(const Layout& layout, Bytes tensors);
std::vector<std::byte*> tensor_places(const Layout& layout, std::vector<std::byte>& tensors);
std::size_t tensor_bytes(const Layout& layout);
// Chunks of an update, of the sizes its form gives, one after the other.
std::vector<Bytes> split_chunks(const Layout& layout, const UpdateForm& form, Bytes chunks);

}  // namespace veilsum::replay
