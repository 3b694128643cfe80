// docs/format.md a second time: slow, byte by byte, and sharing no code with csrc/.
//
// Everything here says only whether bytes are allowed, and what the values are.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

namespace veilsum::slow {

using Octets = std::vector<std::uint8_t>;

inline std::uint64_t little(const std::uint8_t* bytes, int count) {
  std::uint64_t value = 0;
  for (int i = count - 1; i >= 0; --i) value = value * 256 + bytes[i];
  return value;
}

inline void put(Octets& out, std::uint64_t value, int count) {
  for (int i = 0; i < count; ++i, value /= 256) out.push_back(static_cast<std::uint8_t>(value));
}

inline std::uint32_t crc32c(const Octets& bytes) {
  std::uint32_t crc = 0xFFFFFFFF;
  for (const std::uint8_t byte : bytes) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc % 2 == 1 ? crc / 2 ^ 0x82F63B78 : crc / 2;
  }
  return ~crc;
}

// --- values ---------------------------------------------------------------------------

// An IEEE 754 number of `exponent` and `fraction` bits from its fields; none if not finite.
inline std::optional<double> ieee(std::uint64_t bits, int exponent, int fraction) {
  const std::uint64_t significand = bits % (1ull << fraction);
  const int field = static_cast<int>(bits >> fraction & ((1u << exponent) - 1));
  const int bias = (1 << (exponent - 1)) - 1;
  if (field == (1 << exponent) - 1) return std::nullopt;
  const double magnitude = field == 0
                               ? std::ldexp(static_cast<double>(significand), 1 - bias - fraction)
                               : std::ldexp(static_cast<double>(significand + (1ull << fraction)),
                                            field - bias - fraction);
  return bits >> (exponent + fraction) & 1 ? -magnitude : magnitude;
}

// One coded section pair, and what else its values depend on. `value` is none for a chunk that a
// receiver must refuse.
struct Coded {
  const Octets& scales;
  const Octets& codes;
  std::size_t count;
  double steps_per_unit;
  std::uint64_t first;
  const std::uint8_t* plan;
  std::uint64_t update_id;
  // Of each coordinate whether it lies between tensors; empty where nobody knows.
  std::vector<bool> gaps;
};
using Values = std::optional<std::vector<double>>;

inline Values floats(const Coded& chunk, int bytes, int exponent, int fraction) {
  std::vector<double> values;
  for (std::size_t i = 0; i < chunk.count; ++i) {
    const auto value =
        ieee(little(&chunk.codes[i * static_cast<std::size_t>(bytes)], bytes), exponent, fraction);
    if (!value) return std::nullopt;
    values.push_back(*value);
  }
  return values;
}

// Bits [begin, begin + count) of a little-endian bit string.
inline std::uint64_t field(const Octets& bytes, std::size_t begin, unsigned count) {
  std::uint64_t value = 0;
  for (unsigned k = 0; k < count; ++k)
    value |= (std::uint64_t{bytes[(begin + k) / 8]} >> (begin + k) % 8 & 1) << k;
  return value;
}

inline bool zero_bits(const Octets& bytes, std::size_t begin) {
  for (std::size_t place = begin; place < 8 * bytes.size(); ++place)
    if (field(bytes, place, 1) != 0) return false;
  return true;
}

inline Values ring(const Coded& chunk, unsigned bits) {
  std::vector<double> values;
  for (std::size_t i = 0; i < chunk.count; ++i) {
    std::uint64_t word = field(chunk.codes, i * bits, bits);
    if (bits < 64 && word >> (bits - 1) & 1) word |= ~0ull << bits;
    values.push_back(static_cast<double>(static_cast<std::int64_t>(word)) / chunk.steps_per_unit);
  }
  if (!zero_bits(chunk.codes, chunk.count * bits)) return std::nullopt;
  return values;
}

// --- topk -------------------------------------------------------------------------------

struct Kept {
  std::uint64_t count, index_bytes;
  bool half;
};

inline Kept kept(unsigned codec, std::uint64_t count) {
  constexpr std::uint64_t kEvery[8] = {100, 2, 4, 10, 20, 50, 200, 1000};
  const std::uint64_t every = kEvery[codec >> 9 & 7];
  const std::uint64_t entries = (count + every - 1) / every;
  return {entries, (12 * entries + 7) / 8, (codec >> 12) == 2};
}

inline Values topk(const Coded& chunk, unsigned codec) {
  const Kept plan = kept(codec, chunk.count);
  const Octets indices(chunk.codes.begin(),
                       chunk.codes.begin() + static_cast<std::ptrdiff_t>(plan.index_bytes));
  std::vector<double> values(chunk.count);
  std::uint64_t entry = 0;
  for (std::size_t tile = 0; tile * 4096 < chunk.count; ++tile) {
    std::int64_t last = -1;
    for (std::uint64_t left = little(&chunk.scales[2 * tile], 2); left > 0; --left, ++entry) {
      if (entry == plan.count) return std::nullopt;
      const auto index = static_cast<std::int64_t>(field(indices, 12 * entry, 12));
      const std::size_t at = tile * 4096 + static_cast<std::size_t>(index);
      if (index <= last || at >= chunk.count) return std::nullopt;
      last = index;
      const std::size_t width = plan.half ? 2 : 4;
      const std::uint64_t bits =
          little(&chunk.codes[plan.index_bytes + width * entry], static_cast<int>(width));
      const auto value = plan.half ? ieee(bits, 5, 10) : ieee(bits, 8, 23);
      if (!value || (*value == 0 && (bits != 0 || at != entry))) return std::nullopt;
      values[at] = *value;
    }
  }
  if (entry != plan.count || !zero_bits(indices, 12 * entry)) return std::nullopt;
  return values;
}

// --- codecs with a scale per block ------------------------------------------------------

struct Blocks {
  unsigned family;
  unsigned block;
  unsigned scale_bytes;  // 0: raw
  unsigned bits;
  double largest, smallest;
};

// None for codecs of other families.
inline std::optional<Blocks> blocks(unsigned codec) {
  struct Row {
    unsigned family, scale_bytes, bits;
    double largest, smallest;
  };
  static const Row rows[] = {
      {4, 4, 8, 127, 1},
      {6, 2, 4, 7, 1},
      {7, 2, 4, 1, double{0.07958029955625534f}},
      {8, 2, 4, 6, 0.5},
      {9, 4, 8, 448, std::ldexp(1.0, -9)},
      {10, 4, 8, 57344, std::ldexp(1.0, -16)},
      {11, 2, 1, 1, 1},
  };
  for (const Row& row : rows) {
    if (codec % 512 != row.family) continue;
    const unsigned block = codec >> 9 & 7, scale = codec >> 12;
    const unsigned scale_bytes[4] = {row.scale_bytes, 4, 2, 0};
    return Blocks{row.family,         block == 0 ? 64 : 32u << (block - 1),
                  scale_bytes[scale], row.bits,
                  row.largest,        row.smallest};
  }
  return std::nullopt;
}

// What a code stands for; none if it does not exist.
inline std::optional<double> meaning(const Blocks& plan, unsigned code) {
  static const float nf4[16] = {-1.f,
                                -0.6961928009986877f,
                                -0.5250730514526367f,
                                -0.39491748809814453f,
                                -0.28444138169288635f,
                                -0.18477343022823334f,
                                -0.09105003625154495f,
                                0.f,
                                0.07958029955625534f,
                                0.16093020141124725f,
                                0.24611230194568634f,
                                0.33791524171829224f,
                                0.44070982933044434f,
                                0.5626170039176941f,
                                0.7229568362236023f,
                                1.f};
  static const double fp4[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  switch (plan.family) {
    case 4:
      return code == 128 ? std::nullopt : std::optional(code < 128 ? code : code - 256.0);
    case 6:
      return code == 8 ? std::nullopt : std::optional(code < 8 ? code : code - 16.0);
    case 7:
      return nf4[code];
    case 8:
      return code < 8 ? fp4[code] : -fp4[code - 8];
    case 9:  // no infinities: the largest exponent has numbers, and one NaN
      if (code % 128 == 127) return std::nullopt;
      if (code % 128 >= 120) return (code < 128 ? 1 : -1) * (256.0 + 32.0 * (code % 8));
      return ieee(code, 4, 3);
    case 10:
      return ieee(code, 5, 2);
    default:
      return code == 0 ? 1 : -1;
  }
}

// None if the bits are no scale of the codec.
inline std::optional<double> block_scale(const Coded& chunk, const Blocks& plan,
                                         std::size_t number) {
  if (plan.scale_bytes == 0) return 1;
  const int bytes = static_cast<int>(plan.scale_bytes);
  const std::uint64_t pattern = little(&chunk.scales[number * plan.scale_bytes], bytes);
  const auto value = bytes == 4 ? ieee(pattern, 8, 23) : ieee(pattern, 5, 10);
  if (pattern == 0) return 0;
  const double most = std::ldexp(2.0 - std::ldexp(1.0, -23), 127);
  const bool legal = value && *value > 0 && *value * plan.smallest >= std::ldexp(1.0, -126) &&
                     *value * plan.largest <= most;
  return legal ? value : std::nullopt;
}

inline Values in_blocks(const Coded& chunk, const Blocks& plan) {
  std::vector<double> values;
  for (std::size_t i = 0; i < chunk.count; ++i) {
    const auto scale = block_scale(chunk, plan, i / plan.block);
    const auto code = static_cast<unsigned>(field(chunk.codes, i * plan.bits, plan.bits));
    const auto stands_for = meaning(plan, code);
    if (!scale || !stands_for) return std::nullopt;
    if (*scale == 0 && code != (plan.family == 7 ? 7u : 0u)) return std::nullopt;
    const bool gap = plan.family == 11 && !chunk.gaps.empty() && chunk.gaps[i];
    if (gap && code != 0) return std::nullopt;
    values.push_back(gap ? 0 : *stands_for * *scale);
  }
  if (!zero_bits(chunk.codes, chunk.count * plan.bits)) return std::nullopt;
  return values;
}

// --- eden -------------------------------------------------------------------------------

// Coordinates of the rotation blocks of a chunk.
inline std::vector<std::uint64_t> rotation_blocks(std::uint64_t count) {
  std::vector<std::uint64_t> blocks;
  for (std::uint64_t left = (count + 63) / 64 * 64; left > 0; left -= blocks.back()) {
    std::uint64_t size = 4096;
    while (size > left) size /= 4;
    blocks.push_back(size);
  }
  return blocks;
}

struct Four {
  std::uint32_t word[4];
};

inline Four philox(Four counter, std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
    const std::uint64_t a = 0xD2511F53ull * counter.word[0], b = 0xCD9E8D57ull * counter.word[2];
    counter = {{static_cast<std::uint32_t>(b >> 32) ^ counter.word[1] ^ key0,
                static_cast<std::uint32_t>(b),
                static_cast<std::uint32_t>(a >> 32) ^ counter.word[3] ^ key1,
                static_cast<std::uint32_t>(a)}};
  }
  return counter;
}

inline std::uint32_t low(std::uint64_t value) { return static_cast<std::uint32_t>(value); }
inline std::uint32_t high(std::uint64_t value) { return static_cast<std::uint32_t>(value >> 32); }

// Walsh-Hadamard, every operation in f32.
inline void transform(float* values, std::size_t size) {
  const float norm = 1 / std::sqrt(static_cast<float>(size));
  for (std::size_t i = 0; i < size; ++i) values[i] *= norm;
  for (std::size_t apart = 1; apart < size; apart *= 2)
    for (std::size_t i = 0; i < size; ++i) {
      if ((i & apart) != 0) continue;
      const float a = values[i], b = values[i + apart];
      values[i] = a + b;
      values[i + apart] = a - b;
    }
}

// The inverse rotation ends with the signs.
inline void change_signs(std::vector<float>& values, const Coded& chunk) {
  const Four key = philox({{low(chunk.update_id), high(chunk.update_id), low(little(chunk.plan, 4)),
                            low(little(chunk.plan + 4, 4))}},
                          0x4E454445, 0);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint64_t at = chunk.first + i;
    const Four words = philox({{low(at / 128), high(at / 128), 1, 1}}, key.word[0], key.word[1]);
    if (words.word[at / 32 % 4] >> at % 32 & 1) values[i] = -values[i];
  }
}

inline double centroid(unsigned bits, unsigned code) {
  static const std::vector<double> positive[] = {
      {0.79788456080286536},
      {0.45278003463649201, 1.5104176084990954},
      {0.24509417894422167, 0.75600528120587727, 1.3439092785049999, 2.1519457045369873},
      {0.12839502985114701, 0.38804829949029019, 0.65675911853246336, 0.94234045648696135,
       1.2562311973471771, 1.6180463860218826, 2.0690172265313866, 2.732589570995163},
  };
  const std::vector<double>& half = positive[bits - 1];
  return code < half.size() ? -half[half.size() - 1 - code] : half[code - half.size()];
}

inline Values eden(const Coded& chunk, unsigned bits) {
  std::vector<float> turned;
  std::vector<bool> empty;
  std::size_t number = 0;
  for (const std::uint64_t size : rotation_blocks(chunk.count)) {
    const auto factor = block_scale(chunk, {33, 4096, 4, bits, 256, 1}, number++);
    if (!factor) return std::nullopt;
    const std::size_t begin = turned.size();
    for (std::size_t i = 0; i < size; ++i) {
      const auto code = static_cast<unsigned>(field(chunk.codes, (begin + i) * bits, bits));
      if (*factor == 0 && code != 0) return std::nullopt;
      turned.push_back(static_cast<float>(centroid(bits, code) * *factor));
      empty.push_back(*factor == 0);
    }
    transform(&turned[begin], size);
  }
  if (!zero_bits(chunk.codes, turned.size() * bits)) return std::nullopt;
  change_signs(turned, chunk);
  std::vector<double> values;
  for (std::size_t i = 0; i < chunk.count; ++i) values.push_back(empty[i] ? 0 : turned[i]);
  return values;
}

// --- codecs -----------------------------------------------------------------------------

struct Sizes {
  std::uint64_t scales, codes;
};

// None for a codec that this page does not know.
inline std::optional<Sizes> sizes(unsigned codec, std::uint64_t count) {
  if (const auto plan = blocks(codec))
    return Sizes{plan->scale_bytes * ((count + plan->block - 1) / plan->block),
                 (count * plan->bits + 7) / 8};
  if (codec % 512 == 12) {
    const Kept plan = kept(codec, count);
    return Sizes{(count + 4095) / 4096 * 2, plan.index_bytes + plan.count * (plan.half ? 2 : 4)};
  }
  if (codec > 256 && codec <= 256 + 64) return Sizes{0, (count * (codec - 256) + 7) / 8};
  if (codec > 32 && codec <= 32 + 4)
    return Sizes{4 * rotation_blocks(count).size(), (count + 63) / 64 * 64 * (codec - 32) / 8};
  switch (codec) {
    case 1:
      return Sizes{0, 4 * count};
    case 2:
    case 3:
      return Sizes{0, 2 * count};
    case 5:
      return Sizes{0, 8 * count};
    default:
      return std::nullopt;
  }
}

// Whether values() says more than that a chunk is allowed.
inline bool has_values(unsigned codec) { return codec != 5; }

// Values before they are rounded to f32. The codec is one that sizes() knows.
inline Values values(unsigned codec, const Coded& chunk) {
  if (const auto plan = blocks(codec)) return in_blocks(chunk, *plan);
  if (codec % 512 == 12) return topk(chunk, codec);
  if (codec > 256) return ring(chunk, codec - 256);
  if (codec > 32) return eden(chunk, codec - 32);
  switch (codec) {
    case 1:
      return floats(chunk, 4, 8, 23);
    case 2:
      return floats(chunk, 2, 5, 10);
    case 3:
      return floats(chunk, 2, 8, 7);
    default:
      return std::vector<double>(chunk.count);
  }
}

// --- chunks ---------------------------------------------------------------------------

struct Place {
  unsigned codec, flags, group;
  std::uint64_t first, count, index;
  const std::uint8_t* plan;
  std::uint64_t update_id;
};

inline std::uint64_t to_sixteen(std::uint64_t size) { return (size + 15) / 16 * 16; }

// The 60 bytes in front of the checksum.
inline Octets header(const Place& place, const Sizes& sizes) {
  Octets out = {'V', 'L', 'C', '1', 1, 0, 64, 0};
  put(out, place.codec, 2);
  put(out, place.flags, 2);
  put(out, place.group, 4);
  put(out, place.first, 8);
  put(out, place.count, 4);
  put(out, place.index, 4);
  put(out, sizes.scales, 4);
  put(out, sizes.codes, 4);
  out.insert(out.end(), place.plan, place.plan + 8);
  put(out, place.update_id, 8);
  put(out, 0, 4);
  return out;
}

// The checksum that belongs to a chunk of at least 64 bytes.
inline std::uint32_t checksum(const Octets& chunk) {
  Octets covered(chunk.begin(), chunk.begin() + 60);
  covered.insert(covered.end(), chunk.begin() + 64, chunk.end());
  return crc32c(covered);
}

inline bool zeros(const Octets& bytes, std::uint64_t begin, std::uint64_t end) {
  for (std::uint64_t i = begin; i < end; ++i)
    if (bytes[i] != 0) return false;
  return true;
}

// Whether `chunk` is one that an encoder could have written at that place.
inline bool allows(const Octets& chunk, const Place& place, const Sizes& sizes) {
  const std::uint64_t codes_at = 64 + to_sixteen(sizes.scales);
  if (chunk.size() != codes_at + to_sixteen(sizes.codes)) return false;
  const Octets wanted = header(place, sizes);
  if (!std::equal(wanted.begin(), wanted.end(), chunk.begin())) return false;
  if (little(&chunk[60], 4) != checksum(chunk)) return false;
  if (!zeros(chunk, 64 + sizes.scales, codes_at)) return false;
  if (!zeros(chunk, codes_at + sizes.codes, chunk.size())) return false;
  const auto at = [&](std::uint64_t begin, std::uint64_t size) {
    const auto from = chunk.begin() + static_cast<std::ptrdiff_t>(begin);
    return Octets(from, from + static_cast<std::ptrdiff_t>(size));
  };
  const Octets scales = at(64, sizes.scales);
  const Octets codes = at(codes_at, sizes.codes);
  return values(place.codec,
                {scales, codes, place.count, 1.0, place.first, place.plan, place.update_id, {}})
      .has_value();
}

}  // namespace veilsum::slow
