// Shamir sharing, ring words and masks.
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/chunks.h"
#include "bindings/placed_tensors.h"
#include "bindings/register.h"
#include "bindings/rotation.h"
#include "bindings/secrets.h"
#include "device/device_encode.h"
#include "device/device_masks.h"
#include "masks/masks.h"
#include "masks/ring_chunks.h"
#include "masks/ring_words.h"
#include "masks/shamir.h"

namespace veilsum {
namespace {

unsigned to_threads(py::handle threads) {
  return to_integer<unsigned>("threads", threads, 1, kMaxThreads);
}

template <class Integer>
std::vector<Integer> integers(const char* name, py::handle sequence) {
  std::vector<Integer> values;
  for (const py::handle item : py::iter(sequence))
    values.push_back(to_integer<Integer>(name, item));
  return values;
}

// Null for the CPU.
DeviceOwner device_of(const std::string& backend) {
  return backend == "cpu" ? nullptr : open_device(backend);
}

// Keys with their signs, alive for one call.
class Masks {
 public:
  Masks(const std::string& generator, py::handle keys, py::handle signs)
      : secrets_("keys", keys),
        keys_(mask_generator(generator), secrets_.pointers(), integers<int>("signs", signs)) {}
  const MaskKeys& keys() const { return keys_; }

 private:
  SecretList secrets_;
  MaskKeys keys_;
};

py::list deal(py::object secret, py::object threshold, py::object indices,
              py::object coefficients) {
  const auto shared = to_secret("secret", secret);
  const auto random = to_secret("coefficients", coefficients);
  const auto points = integers<std::uint32_t>("indices", indices);
  const auto needed = to_integer<std::size_t>("threshold", threshold);
  std::vector<Secret> shares;
  {
    py::gil_scoped_release release;
    shares = deal_shares(*shared, needed, points, *random);
  }
  return to_list(std::move(shares));
}

py::list combined_secrets(py::object indices, py::object shares) {
  const auto points = integers<std::uint32_t>("indices", indices);
  std::vector<SecretList> owners;
  std::vector<std::vector<const Secret*>> views;
  for (const py::handle of_one_secret : py::iter(shares)) {
    owners.emplace_back("shares", of_one_secret);
    views.push_back(owners.back().pointers());
  }
  std::vector<Secret> secrets;
  {
    py::gil_scoped_release release;
    secrets = combine_shares(points, views);
  }
  return to_list(std::move(secrets));
}

void mask(py::object accumulator, py::object keys, py::object signs, const std::string& generator,
          py::object stream, py::object first, py::object bits, py::object threads,
          const std::string& backend) {
  const Masks masks(generator, keys, signs);
  const MaskPlace place = {to_integer<std::uint32_t>("stream", stream),
                           to_integer<unsigned>("bits", bits),
                           to_integer<std::uint64_t>("first", first)};
  const auto workers = to_threads(threads);
  with_words<false>("accumulator", accumulator, [&](auto words) {
    py::gil_scoped_release release;
    if (const DeviceOwner device = device_of(backend))
      add_masks_on(*device, words, masks.keys(), place, workers);
    else
      add_masks(words, masks.keys(), place, workers);
  });
}

void mask_tiles(py::object accumulator, py::object keys, py::object signs,
                const std::string& generator, py::object stream, py::object tiles, py::object bits,
                py::object threads) {
  const Masks masks(generator, keys, signs);
  const auto number = to_integer<std::uint32_t>("stream", stream);
  const auto numbers = integers<std::uint64_t>("tiles", tiles);
  const auto width = to_integer<unsigned>("bits", bits);
  const unsigned workers = to_threads(threads);
  with_words<false>("accumulator", accumulator, [&](auto sums) {
    py::gil_scoped_release release;
    add_mask_tiles(sums, masks.keys(), number, width, numbers, workers);
  });
}

py::bytes pack(py::object words, py::object bits) {
  const auto width = to_integer<unsigned>("bits", bits);
  const auto packed = with_words<true>("words", words, [&](auto span) {
    py::gil_scoped_release release;
    return pack_words(span, width);
  });
  return py::bytes(reinterpret_cast<const char*>(packed.data()), packed.size());
}

py::array unpack(py::object data, py::object count, py::object bits) {
  const BufferView packed("data", data);
  const auto width = to_integer<unsigned>("bits", bits);
  // Every field takes at least a bit, so the data we hold bounds what is allocated.
  const auto words = to_integer<std::size_t>("count", count);
  if (words / 8 > packed.bytes().size())
    throw DecodeError(std::to_string(words) + " words cannot be in " +
                      std::to_string(packed.bytes().size()) + " bytes");
  py::array_t<std::uint64_t> result(static_cast<py::ssize_t>(words));
  const std::span<std::uint64_t> out(result.mutable_data(), words);
  {
    py::gil_scoped_release release;
    unpack_words(packed.bytes(), width, out);
  }
  return result;
}

py::array center(py::object words, py::object bits) {
  const auto width = to_integer<unsigned>("bits", bits);
  return with_words<true>("words", words, [&](auto span) {
    py::array_t<std::int64_t> result(static_cast<py::ssize_t>(span.size()));
    const std::span<std::int64_t> out(result.mutable_data(), span.size());
    {
      py::gil_scoped_release release;
      center_words(span, width, out);
    }
    return result;
  });
}

// --- chunks --------------------------------------------------------------------

ChunkGrid to_grid(int group, std::uint64_t group_size, py::handle plan_digest, py::handle update_id,
                  py::handle chunk_coordinates) {
  ChunkGrid grid{};
  grid.group = static_cast<std::uint32_t>(group);
  grid.group_size = group_size;
  grid.plan = to_plan_tag(plan_digest);
  grid.update_id = to_integer<std::uint64_t>("update_id", update_id);
  grid.chunk_coordinates = to_integer<std::uint64_t>("chunk_coordinates", chunk_coordinates);
  return grid;
}

// Values, how they become steps, and what masks them, alive for one call.
class StepCall {
 public:
  StepCall(py::handle layout, py::handle arrays, const std::string& backend, py::handle gains,
           py::handle limits, bool clip, py::handle rounding, py::handle keys, py::handle signs,
           const std::string& generator, py::handle scale_block, py::handle rotation_block,
           py::handle rotation_key, double rotated_limit)
      : model_(instance<Layout>("layout", layout)),
        device_(device_of(backend)),
        tensors_(model_, arrays, device_.get()),
        masks_(generator, keys, signs),
        ready_(masks_.keys()),
        gains_(flat_span<const double>("gains", gains)),
        scale_grid_(
            make_grid(model_, to_integer<std::size_t>("scale_block", scale_block), gains_.size())),
        steps_{gains_,       flat_span<const double>("limits", limits),
               clip,         to_rounding(rounding),
               scale_grid_,  to_rotation(rotation_block, rotation_key, kFloatGroup),
               rotated_limit} {}
  StepCall(const StepCall&) = delete;
  StepCall& operator=(const StepCall&) = delete;

  std::uint64_t size() const { return model_.group_size(kFloatGroup); }

  RingChunkPlan plan(py::handle bits, ChunkGrid grid, unsigned threads) const {
    grid.transforms = steps_.rotation.block != 0 ? kChunkRotated : std::uint16_t{0};
    return ring_chunk_plan(to_integer<unsigned>("bits", bits), grid, ready_.terms(), threads);
  }

  std::uint64_t write_chunks(const RingChunkPlan& plan, std::span<std::byte* const> chunks) const {
    if (device_)
      return write_step_chunks_on(*device_, model_, tensors_.placed(), steps_, plan, masks_.keys(),
                                  chunks);
    return write_step_chunks(model_, tensors_.pointers(), steps_, plan, chunks);
  }

  void write_tiles(const RingChunkPlan& plan, std::span<const std::uint64_t> tiles,
                   std::span<std::uint64_t> words) const {
    const auto read = [&](std::uint64_t first, std::span<double> out) {
      if (tensors_.any_on_device())
        read_values(*device_, model_, tensors_.placed(), first, out);
      else
        gather(model_, tensors_.pointers(), first, out);
    };
    write_step_tiles(model_, read, steps_, plan, tiles, words);
  }

 private:
  static ScaleGrid make_grid(const Layout& model, std::size_t block, std::size_t entries) {
    return block == 0 ? ScaleGrid(model) : ScaleGrid(model, block, entries);
  }

  const Layout& model_;
  const DeviceOwner device_;  // null for the CPU
  const PlacedArrays tensors_;
  const Masks masks_;
  const ReadyMasks ready_;
  const std::span<const double> gains_;
  const ScaleGrid scale_grid_;
  const StepPlan steps_;
};

py::tuple encode_ring_chunks(py::object layout, py::object arrays, py::object bits,
                             py::object gains, py::object limits, py::object clip,
                             py::object rounding, py::object keys, py::object signs,
                             const std::string& generator, py::object plan_digest,
                             py::object update_id, py::object chunk_coordinates, py::object threads,
                             py::object scale_block, py::object rotation_block,
                             py::object rotation_key, double rotated_limit,
                             const std::string& backend) {
  const StepCall call(layout, arrays, backend, gains, limits, to_bool("clip", clip), rounding, keys,
                      signs, generator, scale_block, rotation_block, rotation_key, rotated_limit);
  const RingChunkPlan plan =
      call.plan(bits, to_grid(kFloatGroup, call.size(), plan_digest, update_id, chunk_coordinates),
                to_threads(threads));
  NewChunks chunks(ring_chunk_sizes(plan));
  std::uint64_t clamped = 0;
  {
    py::gil_scoped_release release;
    clamped = call.write_chunks(plan, chunks.places());
  }
  return py::make_tuple(chunks.take(), clamped);
}

py::array encode_ring_tiles(py::object layout, py::object arrays, py::object tiles, py::object bits,
                            py::object gains, py::object limits, py::object rounding,
                            py::object keys, py::object signs, const std::string& generator,
                            py::object scale_block, py::object rotation_block,
                            py::object rotation_key, double rotated_limit,
                            const std::string& backend) {
  const StepCall call(layout, arrays, backend, gains, limits, true, rounding, keys, signs,
                      generator, scale_block, rotation_block, rotation_key, rotated_limit);
  ChunkGrid grid{};
  grid.group = kFloatGroup;
  grid.group_size = call.size();
  grid.chunk_coordinates = kTileElements * kRunTiles;  // there are no chunks
  const RingChunkPlan plan = call.plan(bits, grid, 1);
  const auto numbers = integers<std::uint64_t>("tiles", tiles);
  py::array_t<std::uint64_t> words(static_cast<py::ssize_t>(numbers.size() * kTileElements));
  const std::span<std::uint64_t> out(words.mutable_data(), numbers.size() * kTileElements);
  {
    py::gil_scoped_release release;
    call.write_tiles(plan, numbers, out);
  }
  return words;
}

py::list ring_word_chunks(py::object words, py::object bits, py::object group, py::object keys,
                          py::object signs, const std::string& generator, py::object plan_digest,
                          py::object update_id, py::object chunk_coordinates, py::object threads) {
  const auto plain = flat_span<const std::uint64_t>("words", words);
  const Masks masks(generator, keys, signs);
  const ReadyMasks ready(masks.keys());
  const RingChunkPlan plan =
      ring_chunk_plan(to_integer<unsigned>("bits", bits),
                      to_grid(to_integer<int>("group", group, 0), plain.size(), plan_digest,
                              update_id, chunk_coordinates),
                      ready.terms(), to_threads(threads));
  NewChunks chunks(ring_chunk_sizes(plan));
  {
    py::gil_scoped_release release;
    write_word_chunks(plain, plan, chunks.places());
  }
  return chunks.take();
}

// Chunks of several uploads, alive for one call.
class UploadViews {
 public:
  explicit UploadViews(py::handle uploads) {
    for (const py::handle chunks : py::iter(uploads)) {
      owners_.push_back(buffer_views("uploads", chunks));
      views_.push_back(spans_of(owners_.back()));
    }
  }
  Uploads views() const { return views_; }

 private:
  std::vector<std::vector<BufferView>> owners_;
  std::vector<std::vector<std::span<const std::byte>>> views_;
};

void fold(py::object accumulator, py::object uploads, py::object bits, py::object chunk_coordinates,
          py::object threads, const std::string& backend) {
  const UploadViews all(uploads);
  const auto width = to_integer<unsigned>("bits", bits);
  const auto coordinates = to_integer<std::uint64_t>("chunk_coordinates", chunk_coordinates);
  const unsigned workers = to_threads(threads);
  with_words<false>("accumulator", accumulator, [&](auto sums) {
    py::gil_scoped_release release;
    if (const DeviceOwner device = device_of(backend))
      fold_ring_chunks_on(*device, sums, all.views(), width, coordinates, workers);
    else
      fold_ring_chunks(sums, all.views(), width, coordinates, workers);
  });
}

void fold_tiles(py::object accumulator, py::object uploads, py::object tiles, py::object elements,
                py::object bits, py::object chunk_coordinates) {
  const UploadViews all(uploads);
  const auto numbers = integers<std::uint64_t>("tiles", tiles);
  const auto size = to_integer<std::size_t>("elements", elements);
  const auto width = to_integer<unsigned>("bits", bits);
  const auto coordinates = to_integer<std::uint64_t>("chunk_coordinates", chunk_coordinates);
  with_words<false>("accumulator", accumulator, [&](auto sums) {
    py::gil_scoped_release release;
    fold_ring_tiles(sums, all.views(), size, numbers, width, coordinates);
  });
}

}  // namespace

void register_masks(py::module_& module) {
  module.def("deal_shares", &deal, py::arg("secret"), py::arg("threshold"), py::arg("indices"),
             py::arg("coefficients"));
  module.def("combine_shares", &combined_secrets, py::arg("indices"), py::arg("shares"));
  module.def("add_masks", &mask, py::arg("accumulator"), py::arg("keys"), py::arg("signs"),
             py::kw_only(), py::arg("generator"), py::arg("stream"), py::arg("first"),
             py::arg("bits"), py::arg("threads"), py::arg("backend") = "cpu");
  module.def("add_mask_tiles", &mask_tiles, py::arg("accumulator"), py::arg("keys"),
             py::arg("signs"), py::kw_only(), py::arg("generator"), py::arg("stream"),
             py::arg("tiles"), py::arg("bits"), py::arg("threads"));
  module.def("pack_ring", &pack, py::arg("words"), py::arg("bits"));
  module.def("unpack_ring", &unpack, py::arg("data"), py::arg("count"), py::arg("bits"));
  module.def("center_ring", &center, py::arg("words"), py::arg("bits"));
  module.def("encode_ring_chunks", &encode_ring_chunks, py::arg("layout"), py::arg("arrays"),
             py::kw_only(), py::arg("bits"), py::arg("gains"), py::arg("limits"), py::arg("clip"),
             py::arg("rounding"), py::arg("keys"), py::arg("signs"), py::arg("generator"),
             py::arg("plan_digest"), py::arg("update_id"), py::arg("chunk_coordinates"),
             py::arg("threads"), py::arg("scale_block") = 0, py::arg("rotation_block") = 0,
             py::arg("rotation_key") = py::bytes(std::string(sizeof(PhiloxKey), '\0')),
             py::arg("rotated_limit") = 0.0, py::arg("backend") = "cpu");
  module.def("encode_ring_tiles", &encode_ring_tiles, py::arg("layout"), py::arg("arrays"),
             py::kw_only(), py::arg("tiles"), py::arg("bits"), py::arg("gains"), py::arg("limits"),
             py::arg("rounding"), py::arg("keys"), py::arg("signs"), py::arg("generator"),
             py::arg("scale_block") = 0, py::arg("rotation_block") = 0,
             py::arg("rotation_key") = py::bytes(std::string(sizeof(PhiloxKey), '\0')),
             py::arg("rotated_limit") = 0.0, py::arg("backend") = "cpu");
  module.def("ring_word_chunks", &ring_word_chunks, py::arg("words"), py::kw_only(),
             py::arg("bits"), py::arg("group"), py::arg("keys"), py::arg("signs"),
             py::arg("generator"), py::arg("plan_digest"), py::arg("update_id"),
             py::arg("chunk_coordinates"), py::arg("threads"));
  module.def("fold_ring_chunks", &fold, py::arg("accumulator"), py::arg("uploads"), py::kw_only(),
             py::arg("bits"), py::arg("chunk_coordinates"), py::arg("threads"),
             py::arg("backend") = "cpu");
  module.def("fold_ring_tiles", &fold_tiles, py::arg("accumulator"), py::arg("uploads"),
             py::kw_only(), py::arg("tiles"), py::arg("elements"), py::arg("bits"),
             py::arg("chunk_coordinates"));
}

}  // namespace veilsum
