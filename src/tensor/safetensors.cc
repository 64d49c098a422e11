#include "tensor/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <optional>
#include <set>
#include <unordered_map>

#include "base/json.h"
#include "base/strings.h"

namespace tessera {

static_assert(std::endian::native == std::endian::little, "safetensors is little-endian");

namespace {

constexpr std::string_view kMetadataKey = "__metadata__";
// Pieces that are handed to a sink: large enough for the disk, small enough to stay in cache
// between the checksum and the write.
constexpr int64_t kPiece = int64_t{1} << 20;

struct TypeName {
  DType dtype;
  std::string_view name;
};
// In the reference implementation's order of types, by which its writer sorts.
constexpr TypeName kTypes[] = {
    {DType::kBool, "BOOL"}, {DType::kU8, "U8"},   {DType::kI8, "I8"},     {DType::kI16, "I16"},
    {DType::kU16, "U16"},   {DType::kF16, "F16"}, {DType::kBf16, "BF16"}, {DType::kI32, "I32"},
    {DType::kU32, "U32"},   {DType::kF32, "F32"}, {DType::kF64, "F64"},   {DType::kI64, "I64"},
    {DType::kU64, "U64"},
};

int TypeRank(DType dtype) {
  for (size_t i = 0; i < std::size(kTypes); ++i) {
    if (kTypes[i].dtype == dtype) return static_cast<int>(i);
  }
  return -1;
}

std::optional<DType> TypeFromName(std::string_view name) {
  for (const TypeName& type : kTypes) {
    if (type.name == name) return type.dtype;
  }
  return std::nullopt;
}

// JSON with duplicate keys refused: the parser alone would keep the last of them.
Result<Json> ParseWithoutDuplicates(std::string_view text, std::string_view source) {
  // Checks depth and syntax, so that the second parse cannot fail.
  TESSERA_ASSIGN(Json value, ParseJson(text, source));
  std::vector<std::set<std::string>> keys;
  std::string duplicate;
  const Json::parser_callback_t callback = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(key).second && duplicate.empty()) duplicate = key;
    }
    return true;
  };
  value = Json::parse(text, callback);
  if (!duplicate.empty()) {
    return Corrupt(fmt::format("{}: the header has the key '{}' twice", source, duplicate));
  }
  return value;
}

// A JSON number as a non-negative int64, nullopt on anything else.
std::optional<int64_t> AsSize(const Json& value) {
  if (value.is_number_unsigned()) {
    const uint64_t number = value.get<uint64_t>();
    if (number <= static_cast<uint64_t>(INT64_MAX)) return static_cast<int64_t>(number);
  }
  return std::nullopt;
}

Result<SafetensorsEntry> ParseEntry(const std::string& name, const Json& value,
                                    int64_t buffer_bytes, std::string_view source) {
  const auto corrupt = [&](std::string what) {
    return Corrupt(fmt::format("{}: tensor '{}': {}", source, name, what));
  };
  if (!value.is_object()) return corrupt("its entry is not an object");
  const auto dtype = value.find("dtype");
  const auto shape = value.find("shape");
  const auto offsets = value.find("data_offsets");
  if (dtype == value.end() || shape == value.end() || offsets == value.end() || value.size() != 3) {
    return corrupt("its entry must have exactly dtype, shape and data_offsets");
  }
  SafetensorsEntry entry;
  entry.name = name;
  if (!dtype->is_string()) return corrupt("dtype is not a string");
  const auto type = TypeFromName(dtype->get_ref<const std::string&>());
  if (!type) {
    return Unsupported(fmt::format("{}: tensor '{}' has the element type '{}', which is not known",
                                   source, name, dtype->get_ref<const std::string&>()));
  }
  entry.dtype = *type;
  if (!shape->is_array()) return corrupt("shape is not an array");
  int64_t bytes = DTypeBytes(entry.dtype);
  for (const Json& element : *shape) {
    const auto size = AsSize(element);
    if (!size) return corrupt("shape holds something that is not a size");
    entry.shape.push_back(*size);
    if (__builtin_mul_overflow(bytes, *size, &bytes)) return corrupt("its shape overflows 2^63");
  }
  if (!offsets->is_array() || offsets->size() != 2) return corrupt("data_offsets is not a pair");
  const auto begin = AsSize((*offsets)[0]);
  const auto end = AsSize((*offsets)[1]);
  if (!begin || !end) return corrupt("data_offsets holds something that is not a size");
  if (*begin > *end || *end > buffer_bytes) {
    return corrupt(fmt::format("data_offsets [{}, {}) leave the buffer of {} bytes", *begin, *end,
                               buffer_bytes));
  }
  if (*end - *begin != bytes) {
    return corrupt(fmt::format("data_offsets span {} bytes, but {} of {} needs {}", *end - *begin,
                               FormatShape(entry.shape), DTypeName(entry.dtype), bytes));
  }
  entry.offset = *begin;
  entry.bytes = bytes;
  return entry;
}

// A file descriptor opened for reading.
class ReadHandle {
 public:
  static Result<ReadHandle> Open(const std::filesystem::path& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return ErrnoError("cannot open", path.string(), errno);
    return ReadHandle(fd, path.string());
  }
  ReadHandle(ReadHandle&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}
  ReadHandle& operator=(ReadHandle&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(path_, other.path_);
    return *this;
  }
  ~ReadHandle() {
    if (fd_ >= 0) ::close(fd_);
  }

  Result<int64_t> Bytes() const {
    struct stat info = {};
    if (::fstat(fd_, &info) != 0) return ErrnoError("cannot stat", path_, errno);
    return static_cast<int64_t>(info.st_size);
  }

  Status ReadAt(int64_t offset, void* data, int64_t bytes) const {
    char* out = static_cast<char*>(data);
    while (bytes > 0) {
      const ssize_t got = ::pread(fd_, out, static_cast<size_t>(std::min(bytes, int64_t{1} << 30)),
                                  static_cast<off_t>(offset));
      if (got < 0) {
        if (errno == EINTR) continue;
        return ErrnoError("cannot read", path_, errno);
      }
      if (got == 0) return Corrupt(fmt::format("'{}' ends at byte {}", path_, offset));
      out += got;
      offset += got;
      bytes -= got;
    }
    return {};
  }

 private:
  ReadHandle(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_ = -1;
  std::string path_;
};

Result<SafetensorsHeader> ReadHeader(const ReadHandle& file, std::string_view source) {
  TESSERA_ASSIGN(const int64_t file_bytes, file.Bytes());
  std::vector<std::byte> head(static_cast<size_t>(std::min<int64_t>(file_bytes, 8)));
  TESSERA_TRY(file.ReadAt(0, head.data(), static_cast<int64_t>(head.size())));
  if (head.size() == 8) {
    uint64_t length = 0;
    std::memcpy(&length, head.data(), 8);
    if (length <= static_cast<uint64_t>(std::min(file_bytes - 8, kSafetensorsMaxHeader))) {
      head.resize(8 + static_cast<size_t>(length));
      TESSERA_TRY(file.ReadAt(8, head.data() + 8, static_cast<int64_t>(length)));
    }
  }
  return ParseSafetensorsHeader(head, file_bytes, source);
}

}  // namespace

std::string FormatShape(std::span<const int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

const SafetensorsEntry* SafetensorsHeader::Find(std::string_view name) const {
  for (const SafetensorsEntry& entry : entries) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

Result<SafetensorsHeader> ParseSafetensorsHeader(std::span<const std::byte> head,
                                                 int64_t file_bytes, std::string_view source) {
  if (file_bytes < 8 || head.size() < 8) {
    return Corrupt(
        fmt::format("{}: {} bytes are too few for a safetensors file", source, file_bytes));
  }
  uint64_t length = 0;
  std::memcpy(&length, head.data(), 8);
  if (length > static_cast<uint64_t>(kSafetensorsMaxHeader)) {
    return Corrupt(
        fmt::format("{}: the header claims {} bytes, more than the {} allowed: this is "
                    "no safetensors file",
                    source, length, kSafetensorsMaxHeader));
  }
  if (length > static_cast<uint64_t>(file_bytes - 8) || length > head.size() - 8) {
    return Corrupt(fmt::format("{}: the header claims {} bytes, the file has {}: it was cut off",
                               source, length, file_bytes));
  }
  SafetensorsHeader header;
  header.buffer_start = 8 + static_cast<int64_t>(length);
  header.buffer_bytes = file_bytes - header.buffer_start;
  const std::string_view text(reinterpret_cast<const char*>(head.data()) + 8,
                              static_cast<size_t>(length));
  TESSERA_ASSIGN(const Json json, ParseWithoutDuplicates(text, source));
  if (!json.is_object()) return Corrupt(fmt::format("{}: the header is not an object", source));
  for (const auto& [name, value] : json.items()) {
    if (name == kMetadataKey) {
      if (!value.is_object()) {
        return Corrupt(fmt::format("{}: {} is not an object", source, kMetadataKey));
      }
      for (const auto& [key, text_value] : value.items()) {
        if (!text_value.is_string()) {
          return Corrupt(fmt::format("{}: {} '{}' is not a string", source, kMetadataKey, key));
        }
        header.metadata[key] = text_value.get<std::string>();
      }
      continue;
    }
    TESSERA_ASSIGN(SafetensorsEntry entry, ParseEntry(name, value, header.buffer_bytes, source));
    header.entries.push_back(std::move(entry));
  }
  std::sort(header.entries.begin(), header.entries.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
              if (a.offset != b.offset) return a.offset < b.offset;
              return a.bytes != b.bytes ? a.bytes < b.bytes : a.name < b.name;
            });
  int64_t position = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    if (entry.offset != position) {
      return Corrupt(fmt::format(
          "{}: tensor '{}' begins at byte {} of the buffer, {} byte {}", source, entry.name,
          entry.offset,
          entry.offset > position ? "which leaves a hole from" : "inside a tensor that ends at",
          position));
    }
    position += entry.bytes;
  }
  if (position != header.buffer_bytes) {
    return Corrupt(fmt::format("{}: its tensors end at byte {} of a buffer of {}", source, position,
                               header.buffer_bytes));
  }
  return header;
}

Result<SafetensorsHeader> ReadSafetensorsHeader(const std::filesystem::path& path) {
  TESSERA_ASSIGN(const ReadHandle file, ReadHandle::Open(path));
  return ReadHeader(file, path.string());
}

Result<SafetensorsFile> SafetensorsFile::Open(const std::filesystem::path& path) {
  SafetensorsFile file;
  TESSERA_ASSIGN(file.file_, MappedFile::Open(path));
  TESSERA_ASSIGN(file.header_,
                 ParseSafetensorsHeader(file.file_.bytes(), file.file_.size(), path.string()));
  return file;
}

Status ReadSafetensors(const std::filesystem::path& path, std::span<const TensorTarget> targets) {
  TESSERA_ASSIGN(const ReadHandle file, ReadHandle::Open(path));
  TESSERA_ASSIGN(const SafetensorsHeader header, ReadHeader(file, path.string()));
  std::unordered_map<std::string_view, const SafetensorsEntry*> by_name;
  for (const SafetensorsEntry& entry : header.entries) by_name[entry.name] = &entry;

  // Everything is compared before anything is overwritten.
  constexpr size_t kShown = 5;
  std::vector<std::string> differences;
  for (const TensorTarget& target : targets) {
    const auto it = by_name.find(target.name);
    if (it == by_name.end()) {
      differences.push_back(fmt::format("'{}' is missing", target.name));
    } else if (it->second->dtype != target.dtype || it->second->shape != target.shape) {
      differences.push_back(fmt::format(
          "'{}' is {} {}, expected {} {}", target.name, DTypeName(it->second->dtype),
          FormatShape(it->second->shape), DTypeName(target.dtype), FormatShape(target.shape)));
    }
  }
  if (!differences.empty()) {
    const size_t total = differences.size();
    if (total > kShown) differences.resize(kShown);
    return InvalidArgument(fmt::format(
        "'{}' does not hold the expected tensors: {}{}", path.string(), Join(differences, "; "),
        total > kShown ? fmt::format("; and {} more", total - kShown) : ""));
  }
  for (const TensorTarget& target : targets) {
    const SafetensorsEntry& entry = *by_name.at(target.name);
    TESSERA_TRY(file.ReadAt(header.buffer_start + entry.offset, target.data, entry.bytes));
  }
  return {};
}

int64_t TensorView::bytes() const {
  int64_t total = DTypeBytes(dtype);
  for (const int64_t size : shape) total *= size;
  return total;
}

std::string FormatSafetensorsHeader(std::span<const TensorView> tensors,
                                    const std::map<std::string, std::string>& metadata,
                                    std::vector<size_t>* order) {
  order->resize(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) (*order)[i] = i;
  std::sort(order->begin(), order->end(), [&](size_t a, size_t b) {
    const int rank_a = TypeRank(tensors[a].dtype);
    const int rank_b = TypeRank(tensors[b].dtype);
    return rank_a != rank_b ? rank_a > rank_b : tensors[a].name < tensors[b].name;
  });
  const auto quoted = [](const std::string& text) { return JsonText(Json(text)); };
  std::string header = "{";
  if (!metadata.empty()) {
    header += fmt::format("\"{}\":{{", kMetadataKey);
    bool first = true;
    for (const auto& [key, value] : metadata) {
      header += fmt::format("{}{}:{}", first ? "" : ",", quoted(key), quoted(value));
      first = false;
    }
    header += "}";
  }
  int64_t offset = 0;
  for (const size_t index : *order) {
    const TensorView& tensor = tensors[index];
    const int64_t end = offset + tensor.bytes();
    header +=
        fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                    header.size() > 1 ? "," : "", quoted(tensor.name),
                    kTypes[TypeRank(tensor.dtype)].name, fmt::join(tensor.shape, ","), offset, end);
    offset = end;
  }
  header += "}";
  header.append((8 - header.size() % 8) % 8, ' ');
  return header;
}

int64_t SafetensorsBytes(std::span<const TensorView> tensors,
                         const std::map<std::string, std::string>& metadata) {
  std::vector<size_t> order;
  int64_t bytes =
      8 + static_cast<int64_t>(FormatSafetensorsHeader(tensors, metadata, &order).size());
  for (const TensorView& tensor : tensors) bytes += tensor.bytes();
  return bytes;
}

Status StreamSafetensors(std::span<const TensorView> tensors,
                         const std::map<std::string, std::string>& metadata, const ByteSink& sink) {
  std::vector<size_t> order;
  const std::string header = FormatSafetensorsHeader(tensors, metadata, &order);
  const uint64_t length = header.size();
  TESSERA_TRY(sink(&length, sizeof(length)));
  TESSERA_TRY(sink(header.data(), static_cast<int64_t>(header.size())));
  for (const size_t index : order) {
    const char* data = static_cast<const char*>(tensors[index].data);
    const int64_t bytes = tensors[index].bytes();
    for (int64_t done = 0; done < bytes; done += kPiece) {
      TESSERA_TRY(sink(data + done, std::min(kPiece, bytes - done)));
    }
  }
  return {};
}

Status WriteSafetensors(const std::filesystem::path& path, std::span<const TensorView> tensors,
                        const std::map<std::string, std::string>& metadata) {
  const std::filesystem::path temporary = path.string() + fmt::format(".tmp.{}", ::getpid());
  const auto write = [&]() -> Status {
    TESSERA_ASSIGN(FileWriter writer, FileWriter::Create(temporary));
    TESSERA_TRY(StreamSafetensors(tensors, metadata, [&](const void* data, int64_t bytes) {
      return writer.Write(data, bytes);
    }));
    TESSERA_TRY(writer.Sync());
    TESSERA_TRY(writer.Close());
    TESSERA_TRY(RenamePath(temporary, path));
    return SyncDirectory(path.parent_path());
  };
  Status status = write();
  if (!status.ok()) ::unlink(temporary.c_str());
  return status;
}

}  // namespace tessera
