// Which tensors a model has, and where each lies on the coordinate grid.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace veilsum {

// The numbers are those of the canonical bytes.
enum class DType : std::uint8_t {
  f16 = 1,
  bf16,
  f32,
  f64,
  i8,
  i16,
  i32,
  i64,
  u8,
  u16,
  u32,
  u64,
};

// Throws ConfigError if no tensor of a layout can have this dtype.
DType dtype_from_name(std::string_view name);
std::string_view dtype_name(DType dtype);
std::size_t dtype_size(DType dtype);
bool is_floating(DType dtype);

struct Tensor {
  std::string name;  // UTF-8
  DType dtype;
  std::vector<std::uint64_t> shape;
  std::uint64_t elements;  // product of the shape; 1 for rank 0
};

// Where one tensor lies in the coordinate space of its group.
struct TensorSpan {
  std::size_t tensor;  // number in the layout
  std::uint64_t first;
  std::uint64_t elements;
};

inline constexpr int kFloatGroup = 1;
inline constexpr int kIntegerGroup = 2;
// Tensors start on multiples of this, so a block of 64 codes that shares a scale never
// crosses from one tensor into the next.
inline constexpr std::uint64_t kTensorAlignment = 64;

class Layout {
 public:
  // Computes element counts itself. Throws ConfigError if a limit of the format is passed.
  explicit Layout(std::vector<Tensor> tensors);

  // Throws DecodeError unless `bytes` are what canonical_bytes() returns for some layout.
  static Layout parse(std::span<const std::byte> bytes);
  std::vector<std::byte> canonical_bytes() const;

  const std::vector<Tensor>& tensors() const { return tensors_; }
  // Elements of all tensors, gaps not counted.
  std::uint64_t size() const { return size_; }

  // The tensors of group 1 (floating point) or 2 (integers), in layout order, empty ones
  // included. Throws ConfigError for another group.
  const std::vector<TensorSpan>& group(int g) const { return space(g).spans; }
  // Coordinates of a group, gaps counted.
  std::uint64_t group_size(int g) const { return space(g).size; }

 private:
  struct Space {
    std::vector<TensorSpan> spans;
    std::uint64_t size = 0;
  };
  const Space& space(int g) const;

  std::vector<Tensor> tensors_;
  std::array<Space, 2> spaces_;
  std::uint64_t size_ = 0;
};

}  // namespace veilsum
