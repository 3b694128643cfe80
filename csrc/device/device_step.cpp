#include "device/device_step.h"

#include <algorithm>
#include <cstring>

#include "base/parallel.h"
#include "device/window_form.h"

namespace veilsum {
namespace {

// What a thread copies at a time.
constexpr std::size_t kPieceBytes = std::size_t{1} << 18;

// Bytes per coordinate that suffice for values and for moments of all tensors.
std::size_t most_value_bytes(const Layout& layout) {
  std::size_t most = 0;
  for (const TensorSpan& span : layout.group(kFloatGroup))
    most = std::max(most, dtype_size(layout.tensors()[span.tensor].dtype));
  return most;
}
std::size_t most_moment_bytes(const Layout& layout) { return needs_double(layout) ? 8 : 4; }

}  // namespace

StepWindow::MemoryPlaces::MemoryPlaces(const ServerStep& step, std::size_t tiles) {
  const Layout& layout = step.layout();
  const StepResidence& resident = step.resident();
  const std::size_t blocks = tiles * kTile / kTensorAlignment;
  const std::size_t coordinates = tiles * kTile;
  const std::size_t moments = resident.moments ? 0 : coordinates * most_moment_bytes(layout);
  unfit = places.add(sizeof(std::uint32_t));
  part_of = places.add(blocks * sizeof(std::uint32_t));
  parts = places.add(std::min(blocks, layout.group(kFloatGroup).size()) * sizeof(StepPart));
  values =
      places.add(resident.model && resident.updated ? 0 : coordinates * most_value_bytes(layout));
  first = places.add(has_first_moment(step.kind()) ? moments : 0);
  second = places.add(has_second_moment(step.kind()) ? moments : 0);
}

StepWindow::StepWindow(const DeviceStream& stream, const ServerStep& step, std::size_t tiles,
                       unsigned threads)
    : stream_(stream),
      step_(step),
      threads_(threads),
      at_(step, tiles),
      host_(stream.device(), at_.places.bytes()),
      memory_(stream, at_.places.bytes()),
      values_{at_.values},
      first_{at_.first},
      second_{at_.second} {}

// Where a part's array lies on the device: in place, or in the window's memory.
unsigned char* StepWindow::place_array(std::byte* tensor, bool resident, std::size_t element_size,
                                       const TensorPart& part, Staged& staged,
                                       std::vector<Piece>& pieces) {
  if (tensor == nullptr) return nullptr;
  std::byte* const begin = tensor + part.element * element_size;
  if (resident) return reinterpret_cast<unsigned char*>(begin);
  const std::size_t place = staged.place + staged.bytes;
  const std::size_t bytes = part.count * element_size;
  for (std::size_t done = 0; done < bytes; done += kPieceBytes)
    pieces.push_back(
        {begin + done, host_.as<std::byte>(place + done), std::min(kPieceBytes, bytes - done)});
  return memory_.as<unsigned char>(place);
}

// New values replace the old ones in the window's memory if neither lies on the device.
StepPart StepWindow::place_part(const TensorPart& part) {
  const StepTensors& tensors = step_.tensors();
  const StepResidence& resident = step_.resident();
  const DType dtype = step_.layout().tensors()[part.tensor].dtype;
  const std::size_t size = dtype_size(dtype);
  const std::size_t moment_size = dtype_size(moment_dtype(dtype));
  const auto moment = [&](MutableTensorData moments, Staged& staged) {
    return place_array(moments[part.tensor], resident.moments, moment_size, part, staged,
                       moment_pieces_);
  };
  const StepPart placed = {
      .offset = static_cast<std::uint32_t>(part.offset),
      .count = static_cast<std::uint32_t>(part.count),
      .format = mean_format(dtype),
      .model = place_array(const_cast<std::byte*>(tensors.model[part.tensor]), resident.model, size,
                           part, values_, model_pieces_),
      .first = moment(tensors.first, first_),
      .second = moment(tensors.second, second_),
      .updated = place_array(tensors.updated[part.tensor], resident.updated, size, part, values_,
                             updated_pieces_),
  };
  // Arrays of the next part begin at multiples of 64 elements.
  const std::size_t blocks =
      (part.count + kTensorAlignment - 1) / kTensorAlignment * kTensorAlignment;
  values_.bytes += blocks * size;
  if (!resident.moments) {
    first_.bytes += has_first_moment(step_.kind()) ? blocks * moment_size : 0;
    second_.bytes += has_second_moment(step_.kind()) ? blocks * moment_size : 0;
  }
  return placed;
}

void StepWindow::place_parts(const Window& window) {
  tensors_.clear();
  model_pieces_.clear();
  updated_pieces_.clear();
  moment_pieces_.clear();
  values_.bytes = first_.bytes = second_.bytes = 0;
  auto* const parts = host_.as<StepPart>(at_.parts);
  auto* const part_of = host_.as<std::uint32_t>(at_.part_of);
  const std::size_t coordinates = window.tiles * kTile;
  std::fill_n(part_of, coordinates / kTensorAlignment, kNoPart);
  for_each_part(step_.layout(), kFloatGroup, std::uint64_t{window.first_tile} * kTile, coordinates,
                [&](const TensorPart& part) {
                  const std::size_t number = tensors_.size();
                  parts[number] = place_part(part);
                  std::fill_n(part_of + part.offset / kTensorAlignment,
                              (part.count + kTensorAlignment - 1) / kTensorAlignment,
                              static_cast<std::uint32_t>(number));
                  tensors_.push_back(part.tensor);
                });
}

void StepWindow::copy_to_window(const std::vector<Piece>& pieces) const {
  parallel_for(pieces.size(), 1, threads_, [&](const Range& range) {
    const Piece& piece = pieces[range.index];
    std::memcpy(piece.window, piece.host, piece.bytes);
  });
}

void StepWindow::copy_to_host(const std::vector<Piece>& pieces) const {
  parallel_for(pieces.size(), 1, threads_, [&](const Range& range) {
    const Piece& piece = pieces[range.index];
    std::memcpy(piece.host, piece.window, piece.bytes);
  });
}

void StepWindow::copy_in() const {
  const auto to_device = [&](std::size_t place, std::size_t bytes) {
    stream_.to_device(memory_.as<void>(place), host_.as<void>(place), bytes);
  };
  *host_.as<std::uint32_t>(at_.unfit) = 0;
  to_device(at_.unfit, at_.values - at_.unfit);  // with the tables behind it
  copy_to_window(model_pieces_);
  copy_to_window(moment_pieces_);
  if (!model_pieces_.empty()) to_device(at_.values, values_.bytes);
  to_device(at_.first, first_.bytes);
  to_device(at_.second, second_.bytes);
}

void StepWindow::copy_out() const {
  const auto to_host = [&](std::size_t place, std::size_t bytes) {
    stream_.to_host(host_.as<void>(place), memory_.as<void>(place), bytes);
  };
  to_host(at_.unfit, sizeof(std::uint32_t));
  if (!updated_pieces_.empty()) to_host(at_.values, values_.bytes);
  to_host(at_.first, first_.bytes);
  to_host(at_.second, second_.bytes);
}

void StepWindow::begin(const Window& window, const void* means, bool wide) {
  place_parts(window);
  copy_in();
  const WindowStep job = {
      .kind = step_.kind(),
      .rule = step_.rule(),
      .tiles = window.tiles,
      .part = memory_.as<StepPart>(at_.parts),
      .parts = static_cast<std::uint32_t>(tensors_.size()),
      .part_of = memory_.as<std::uint32_t>(at_.part_of),
      .means = means,
      .wide = wide,
      .unfit = memory_.as<std::uint32_t>(at_.unfit),
  };
  stream_.device().check(stream_.device().api().step->step_window(stream_.launch(), job),
                         "launching the step of a window", at_.places.bytes());
  copy_out();
}

void StepWindow::finish() {
  if (const std::uint32_t unfit = *host_.as<std::uint32_t>(at_.unfit); unfit != 0)
    step_.refuse(tensors_[tensors_.size() - unfit]);
  copy_to_host(updated_pieces_);
  copy_to_host(moment_pieces_);
}

}  // namespace veilsum
