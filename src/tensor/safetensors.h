// safetensors files: read with every length checked before it is used, written as a stream.
//
// Layout: u64 little-endian header length N, N bytes of JSON, then the buffer. The JSON maps names
// to
// {"dtype", "shape", "data_offsets": [begin, end)} relative to the buffer, which the tensors cover
// exactly; "__metadata__" is an object of strings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "tensor/dtype.h"

namespace tessera {

inline constexpr int64_t kSafetensorsMaxHeader = 100'000'000;  // bytes, as in the reference reader

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  int64_t offset = 0;  // from the start of the buffer
  int64_t bytes = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // in the order of the buffer
  std::map<std::string, std::string> metadata;
  int64_t buffer_start = 0;  // in the file
  int64_t buffer_bytes = 0;

  const SafetensorsEntry* Find(std::string_view name) const;
};

// Parses the header from the first bytes of a file of `file_bytes` bytes; `head` must hold at least
// the whole header (8 + N bytes) when the file does. Corrupt on wrong lengths, overflow, holes,
// overlaps and duplicate names; unsupported on element types that this build does not know.
Result<SafetensorsHeader> ParseSafetensorsHeader(std::span<const std::byte> head,
                                                 int64_t file_bytes, std::string_view source);
// Reads only the header.
Result<SafetensorsHeader> ReadSafetensorsHeader(const std::filesystem::path& path);

// A file whose tensors are looked at in place through a memory map.
class SafetensorsFile {
 public:
  static Result<SafetensorsFile> Open(const std::filesystem::path& path);
  const SafetensorsHeader& header() const { return header_; }
  std::span<const std::byte> data(const SafetensorsEntry& entry) const {
    return file_.bytes().subspan(static_cast<size_t>(header_.buffer_start + entry.offset),
                                 static_cast<size_t>(entry.bytes));
  }

 private:
  MappedFile file_;
  SafetensorsHeader header_;
};

// Where ReadSafetensors puts one tensor.
struct TensorTarget {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  void* data = nullptr;
};
// Reads the named tensors straight into place, without a map and without a copy of the file.
// A missing tensor, another type or another shape is an error that lists the first differences.
// Tensors of the file that nobody asks for are skipped.
Status ReadSafetensors(const std::filesystem::path& path, std::span<const TensorTarget> targets);

// A tensor in memory, C order.
struct TensorView {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
  int64_t bytes() const;
};

// The header as the reference writer makes it: tensors by type (wider first), then by name, padded
// with spaces to a multiple of 8. `order` gets the indexes of `tensors` in the order of the buffer.
std::string FormatSafetensorsHeader(std::span<const TensorView> tensors,
                                    const std::map<std::string, std::string>& metadata,
                                    std::vector<size_t>* order);
// Bytes of the file that WriteSafetensors makes.
int64_t SafetensorsBytes(std::span<const TensorView> tensors,
                         const std::map<std::string, std::string>& metadata);

// Receives the file in pieces, in order.
using ByteSink = std::function<Status(const void* data, int64_t bytes)>;
// Streams from the tensors' memory; copies nothing of the tensors' size.
Status StreamSafetensors(std::span<const TensorView> tensors,
                         const std::map<std::string, std::string>& metadata, const ByteSink& sink);
// Writes to a temporary name, syncs and renames.
Status WriteSafetensors(const std::filesystem::path& path, std::span<const TensorView> tensors,
                        const std::map<std::string, std::string>& metadata);

std::string FormatShape(std::span<const int64_t> shape);  // "[256, 1024]"

}  // namespace tessera
