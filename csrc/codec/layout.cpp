#include "codec/layout.h"

#include <unordered_set>

#include "base/bytes.h"
#include "base/error.h"
#include "codec/utf8.h"

namespace veilsum {
namespace {

struct DTypeEntry {
  std::string_view name;
  std::size_t size;
};

// By canonical number, which starts at 1.
constexpr std::array<DTypeEntry, 12> kDTypes = {{{"f16", 2},
                                                 {"bf16", 2},
                                                 {"f32", 4},
                                                 {"f64", 8},
                                                 {"i8", 1},
                                                 {"i16", 2},
                                                 {"i32", 4},
                                                 {"i64", 8},
                                                 {"u8", 1},
                                                 {"u16", 2},
                                                 {"u32", 4},
                                                 {"u64", 8}}};

constexpr std::uint32_t kMagic = 0x314C4C56;  // "VLL1"
constexpr std::size_t kMaxTensors = 65536;
constexpr std::size_t kMaxNameBytes = 512;
constexpr std::size_t kMaxRank = 8;
constexpr std::uint64_t kMaxCoordinates = std::uint64_t{1} << 40;

const DTypeEntry& entry(DType dtype) { return kDTypes[static_cast<std::size_t>(dtype) - 1]; }

void check_name(const std::string& name) {
  if (name.empty()) throw ConfigError("a tensor has an empty name");
  if (name.size() > kMaxNameBytes)
    throw ConfigError("a tensor name has " + std::to_string(name.size()) +
                      " bytes of UTF-8, at most 512 are allowed");
  if (!is_utf8(name)) throw ConfigError("a tensor name is not UTF-8");
}

std::uint64_t count_elements(const Tensor& tensor) {
  if (tensor.shape.size() > kMaxRank)
    throw ConfigError("tensor '" + tensor.name + "' has rank " +
                      std::to_string(tensor.shape.size()) + ", at most 8 is allowed");
  std::uint64_t elements = 1;
  bool empty = false;
  for (const std::uint64_t dimension : tensor.shape) {
    empty |= dimension == 0;
    // Bounds dimensions next to a zero too: they are allocated by nobody, but other
    // libraries compute with them.
    if (dimension > kMaxCoordinates || (dimension != 0 && elements > kMaxCoordinates / dimension))
      throw ConfigError("tensor '" + tensor.name + "' has more than 2**40 elements");
    if (dimension != 0) elements *= dimension;
  }
  return empty ? 0 : elements;
}

std::uint64_t aligned(std::uint64_t coordinate) {
  return (coordinate + kTensorAlignment - 1) / kTensorAlignment * kTensorAlignment;
}

DType read_dtype(ByteReader& reader) {
  const std::uint8_t number = reader.u8("dtype");
  if (number < 1 || number > kDTypes.size())
    throw DecodeError("layout has dtype number " + std::to_string(number) + ", known are 1 to 12");
  return static_cast<DType>(number);
}

Tensor read_tensor(ByteReader& reader) {
  const auto name = reader.take(reader.u16("name length"), "tensor name");
  Tensor tensor{std::string(reinterpret_cast<const char*>(name.data()), name.size()),
                read_dtype(reader),
                {},
                0};
  const std::uint8_t rank = reader.u8("rank");
  for (unsigned i = 0; i < rank; ++i) tensor.shape.push_back(reader.u64("dimension"));
  return tensor;
}

}  // namespace

DType dtype_from_name(std::string_view name) {
  for (std::size_t i = 0; i < kDTypes.size(); ++i)
    if (kDTypes[i].name == name) return static_cast<DType>(i + 1);
  throw ConfigError("a layout cannot hold dtype '" + std::string(name) + "'",
                    "use one of f16 bf16 f32 f64 i8 i16 i32 i64 u8 u16 u32 u64; keep flags as u8 "
                    "and complex numbers as pairs of floats");
}

std::string_view dtype_name(DType dtype) { return entry(dtype).name; }
std::size_t dtype_size(DType dtype) { return entry(dtype).size; }
bool is_floating(DType dtype) { return dtype <= DType::f64; }

Layout::Layout(std::vector<Tensor> tensors) : tensors_(std::move(tensors)) {
  if (tensors_.empty() || tensors_.size() > kMaxTensors)
    throw ConfigError("a layout has 1 to 65536 tensors, got " + std::to_string(tensors_.size()));
  std::unordered_set<std::string_view> names;
  for (std::size_t number = 0; number < tensors_.size(); ++number) {
    Tensor& tensor = tensors_[number];
    check_name(tensor.name);
    if (!names.insert(tensor.name).second)
      throw ConfigError("tensor name '" + tensor.name + "' is used twice");
    tensor.elements = count_elements(tensor);
    Space& space = spaces_[is_floating(tensor.dtype) ? 0 : 1];
    space.spans.push_back({number, space.size, tensor.elements});
    space.size = aligned(space.size + tensor.elements);
    if (spaces_[0].size + spaces_[1].size > kMaxCoordinates)
      throw ConfigError("a layout has at most 2**40 coordinates");
    size_ += tensor.elements;
  }
}

Layout Layout::parse(std::span<const std::byte> bytes) {
  ByteReader reader(bytes);
  if (reader.u32("layout magic") != kMagic)
    throw DecodeError("a layout starts with the bytes \"VLL1\"");
  const std::uint32_t count = reader.u32("tensor count");
  if (count > kMaxTensors)
    throw DecodeError("layout has " + std::to_string(count) +
                      " tensors, at most 65536 are allowed");
  std::vector<Tensor> tensors;
  // Grows with the bytes that are really there: a count is a claim.
  for (std::uint32_t i = 0; i < count; ++i) tensors.push_back(read_tensor(reader));
  reader.expect_end();
  try {
    return Layout(std::move(tensors));
  } catch (const ConfigError& error) {
    throw DecodeError(std::string("layout is not valid: ") + error.what());
  }
}

std::vector<std::byte> Layout::canonical_bytes() const {
  ByteWriter writer;
  writer.u32(kMagic);
  writer.u32(static_cast<std::uint32_t>(tensors_.size()));
  for (const Tensor& tensor : tensors_) {
    writer.u16(static_cast<std::uint16_t>(tensor.name.size()));
    writer.raw(std::string_view(tensor.name));
    writer.u8(static_cast<std::uint8_t>(tensor.dtype));
    writer.u8(static_cast<std::uint8_t>(tensor.shape.size()));
    for (const std::uint64_t dimension : tensor.shape) writer.u64(dimension);
  }
  return writer.release();
}

const Layout::Space& Layout::space(int g) const {
  if (g != kFloatGroup && g != kIntegerGroup)
    throw ConfigError("tensor groups are 1 and 2, got " + std::to_string(g));
  return spaces_[static_cast<std::size_t>(g - 1)];
}

}  // namespace veilsum
