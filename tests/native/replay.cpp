// veilsum_replay FILE: computes every golden vector of FILE again, on every instruction set
// that this machine has, and fails at the first different bit.
#include "replay.h"

#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>

#include "kernels/dispatch.h"

namespace veilsum::replay {
namespace {

using Replay = void (*)(Record&);

const std::map<std::string, Replay, std::less<>> kKinds = {
    {"masks", replay_masks},       {"packing", replay_packing}, {"encoding", replay_encoding},
    {"decoding", replay_decoding}, {"mean", replay_mean},       {"rules", replay_rules},
    {"rounding", replay_rounding},
};

std::vector<std::byte> read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw ConfigError(std::string("cannot read ") + path);
  std::vector<std::byte> bytes;
  for (std::istreambuf_iterator<char> byte(file), end; byte != end; ++byte)
    bytes.push_back(static_cast<std::byte>(*byte));
  return bytes;
}

std::vector<std::vector<Bytes>> parse(Bytes file) {
  std::vector<std::vector<Bytes>> records;
  ByteReader reader(file);
  while (reader.remaining() != 0) {
    std::vector<Bytes>& fields = records.emplace_back();
    for (std::uint32_t left = reader.u32("fields"); left > 0; --left)
      fields.push_back(reader.take(reader.u32("field length"), "field"));
  }
  return records;
}

void replay_record(const std::vector<Bytes>& fields, std::map<std::string, int>& counts) {
  Record record(fields);
  const std::string kind = record.text();
  const auto found = kKinds.find(kind);
  if (found == kKinds.end()) throw DecodeError("unknown kind of record: " + kind);
  found->second(record);
  if (!record.at_end()) throw DecodeError(kind + " has fields that nobody read");
  ++counts[kind];
}

void replay_all(const std::vector<std::vector<Bytes>>& records) {
  for (const KernelTable* table : supported_kernels()) {
    use_isa(table->name);
    std::map<std::string, int> counts;
    for (std::size_t i = 0; i < records.size(); ++i) try {
        replay_record(records[i], counts);
      } catch (const Error& error) {
        throw DecodeError("record " + std::to_string(i) + " on " + table->name + ": " +
                          error.what());
      }
    std::printf("%s:", table->name);
    for (const auto& [kind, count] : counts) std::printf(" %d %s", count, kind.c_str());
    std::printf("\n");
  }
}

}  // namespace

void require_equal(std::string_view what, Bytes found, Bytes expected) {
  if (found.size() != expected.size())
    throw DecodeError(std::string(what) + ": " + std::to_string(found.size()) +
                      " bytes, expected " + std::to_string(expected.size()));
  for (std::size_t i = 0; i < found.size(); ++i)
    if (found[i] != expected[i])
      throw DecodeError(std::string(what) + " differs at byte " + std::to_string(i));
}

}  // namespace veilsum::replay

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "usage: veilsum_replay FILE\n");
    return 2;
  }
  try {
    const auto file = veilsum::replay::read_file(arguments[1]);
    const auto records = veilsum::replay::parse(file);
    if (records.empty()) throw veilsum::ConfigError("the file has no records");
    veilsum::replay::replay_all(records);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
