#include <fmt/format.h>
#include <openssl/evp.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <limits>
#include <type_traits>

#include "base/hash.h"
#include "base/strings.h"
#include "data/mds.h"

namespace tessera {

static_assert(std::endian::native == std::endian::little,
              "MDS values are little-endian and are read in place");

namespace {

struct ScalarType {
  std::string_view name;
  uint8_t code;  // In `ndarray` values that carry their type.
  int64_t bytes;
};
constexpr ScalarType kScalarTypes[] = {
    {"uint8", 8, 1},    {"int8", 9, 1},    {"uint16", 16, 2},  {"int16", 17, 2},
    {"float16", 18, 2}, {"uint32", 32, 4}, {"int32", 33, 4},   {"float32", 34, 4},
    {"uint64", 64, 8},  {"int64", 65, 8},  {"float64", 66, 8},
};

const ScalarType* FindScalar(std::string_view name) {
  for (const ScalarType& type : kScalarTypes) {
    if (type.name == name) return &type;
  }
  return nullptr;
}

template <class T>
T Load(const char* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

struct Array {
  const ScalarType* type = nullptr;
  std::vector<int64_t> shape;
  std::string_view values;
  int64_t count = 0;
};

// "2,3" with every dimension >= 1 and a product that a shard can hold.
Result<std::vector<int64_t>> ParseShape(std::string_view text) {
  std::vector<int64_t> shape;
  int64_t product = 1;
  for (const std::string_view part : Split(text, ',')) {
    const std::optional<int64_t> dim = ParseInt(part);
    if (!dim || *dim < 1 || *dim > kMdsMaxShardBytes / product) {
      return Corrupt(fmt::format("array shape '{}' is not a list of sizes that fit a shard", text));
    }
    product *= *dim;
    shape.push_back(*dim);
  }
  return shape;
}

Result<Array> ParseArray(std::string_view encoding, std::string_view value) {
  const std::vector<std::string_view> parts = Split(encoding, ':');
  if (parts[0] != "ndarray" || parts.size() > 3) {
    return Unsupported(fmt::format("encoding '{}' is no ndarray", encoding));
  }
  Array array;
  size_t position = 0;
  if (parts.size() == 1) {
    if (value.empty()) return Corrupt("array value is empty");
    const uint8_t code = static_cast<uint8_t>(value[position++]);
    for (const ScalarType& type : kScalarTypes) {
      if (type.code == code) array.type = &type;
    }
    if (array.type == nullptr) return Corrupt(fmt::format("array has unknown type code {}", code));
  } else {
    array.type = FindScalar(parts[1]);
    if (array.type == nullptr) {
      return Unsupported(fmt::format("encoding '{}' has an unknown type", encoding));
    }
  }
  array.count = 1;
  if (parts.size() == 3) {
    TESSERA_ASSIGN(array.shape, ParseShape(parts[2]));
    for (const int64_t dim : array.shape) array.count *= dim;
  } else {
    if (position >= value.size()) return Corrupt("array value ends before its shape");
    const uint8_t shape_byte = static_cast<uint8_t>(value[position++]);
    const int64_t ndim = shape_byte >> 2;
    const size_t dim_bytes = size_t{1} << (shape_byte & 3);
    if (ndim == 0) return Corrupt("array has no dimensions");
    for (int64_t i = 0; i < ndim; ++i) {
      if (value.size() - position < dim_bytes) {
        return Corrupt("array value ends within its shape");
      }
      uint64_t dim = 0;
      std::memcpy(&dim, value.data() + position, dim_bytes);
      position += dim_bytes;
      if (dim == 0 || dim > static_cast<uint64_t>(kMdsMaxShardBytes / array.count)) {
        return Corrupt(fmt::format("array dimension {} is {}", i, dim));
      }
      array.count *= static_cast<int64_t>(dim);
      array.shape.push_back(static_cast<int64_t>(dim));
    }
  }
  array.values = value.substr(position);
  const int64_t wanted = array.count * array.type->bytes;
  if (static_cast<int64_t>(array.values.size()) != wanted) {
    return Corrupt(fmt::format("array of {} {} needs {} bytes, has {}", array.count,
                               array.type->name, wanted, array.values.size()));
  }
  return array;
}

float HalfToFloat(uint16_t half) {
  const uint32_t sign = uint32_t{half} >> 15 << 31;
  uint32_t exponent = half >> 10 & 31;
  uint32_t mantissa = half & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000u | mantissa << 13);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

Json ScalarToJson(const ScalarType& type, const char* data) {
  switch (type.code) {
    case 8: return Load<uint8_t>(data);
    case 9: return Load<int8_t>(data);
    case 16: return Load<uint16_t>(data);
    case 17: return Load<int16_t>(data);
    case 18: return HalfToFloat(Load<uint16_t>(data));
    case 32: return Load<uint32_t>(data);
    case 33: return Load<int32_t>(data);
    case 34: return Load<float>(data);
    case 64: return Load<uint64_t>(data);
    case 65: return Load<int64_t>(data);
    default: return Load<double>(data);
  }
}

// How far ahead of its copy a value's memory is asked for: samples lie anywhere in a shard, and a core's
// own prefetching begins anew at each and ends at each page.
constexpr int64_t kAskAhead = 2048, kAskTogether = 256;  // bytes

void AskFor(const char* begin, const char* end) {
  for (const char* line = begin; line < end; line += 64) __builtin_prefetch(line);
}

// Every value is widened and the checks fold into one maximum, so that loops of known length vectorize.
template <class T>
[[gnu::always_inline]] inline int64_t WidenLoop(const char* data, int64_t count, int32_t* out) {
  using Id = std::conditional_t<sizeof(T) <= 4, uint32_t, uint64_t>;
  constexpr int64_t kSize = static_cast<int64_t>(sizeof(T)), kTogether = kAskTogether / kSize;
  const char* const end = data + count * kSize;
  AskFor(data, std::min(data + kAskAhead, end));
  Id largest = 0;
  const auto widen = [&](int64_t i) {
    const Id id = static_cast<Id>(Load<T>(data + i * kSize));
    out[i] = static_cast<int32_t>(id);
    largest = std::max(largest, id);
  };
  int64_t first = 0;
  for (; first + kTogether <= count; first += kTogether) {
    const char* const ahead = data + first * kSize + kAskAhead;
    if (ahead < end) AskFor(ahead, ahead + kAskTogether);
    for (int64_t i = 0; i < kTogether; ++i) widen(first + i);
  }
  for (; first < count; ++first) widen(first);
  return largest > Id{INT32_MAX} ? -1 : static_cast<int64_t>(largest);
}

#if defined(__x86_64__)
template <class T>
[[gnu::target("avx2")]] int64_t WidenAvx2(const char* data, int64_t count, int32_t* out) {
  return WidenLoop<T>(data, count, out);
}
#endif

template <class T>
int64_t Widen(const char* data, int64_t count, int32_t* out) {
#if defined(__x86_64__)
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  if (has_avx2) return WidenAvx2<T>(data, count, out);
#endif
  return WidenLoop<T>(data, count, out);
}

std::string EvpHex(const char* name, std::string_view data) {
  uint8_t digest[EVP_MAX_MD_SIZE];
  unsigned int bytes = 0;
  const EVP_MD* method = EVP_get_digestbyname(name);
  if (method == nullptr ||
      EVP_Digest(data.data(), data.size(), digest, &bytes, method, nullptr) != 1) {
    return {};
  }
  return HexOf(digest, bytes);
}

std::string Hex64(uint64_t value) { return fmt::format("{:016x}", value); }

}  // namespace

std::optional<std::string> MdsHashHex(std::string_view algorithm, std::string_view data) {
  if (algorithm == "xxh32") return fmt::format("{:08x}", XXH32(data.data(), data.size(), 0));
  if (algorithm == "xxh64") return Hex64(XXH64(data.data(), data.size(), 0));
  if (algorithm == "xxh3_64") return Hex64(XXH3_64bits(data.data(), data.size()));
  if (algorithm == "xxh128" || algorithm == "xxh3_128") {
    const XXH128_hash_t hash = XXH3_128bits(data.data(), data.size());
    return Hex64(hash.high64) + Hex64(hash.low64);
  }
  static constexpr std::pair<std::string_view, const char*> kEvpNames[] = {
      {"blake2b", "BLAKE2b512"}, {"blake2s", "BLAKE2s256"}, {"md5", "MD5"},
      {"sha1", "SHA1"},          {"sha224", "SHA224"},      {"sha256", "SHA256"},
      {"sha384", "SHA384"},      {"sha512", "SHA512"},      {"sha3_224", "SHA3-224"},
      {"sha3_256", "SHA3-256"},  {"sha3_384", "SHA3-384"},  {"sha3_512", "SHA3-512"},
  };
  for (const auto& [name, evp] : kEvpNames) {
    if (name != algorithm) continue;
    std::string hex = EvpHex(evp, data);
    if (!hex.empty()) return hex;
  }
  return std::nullopt;
}

Status SplitMdsSample(const MdsShard& shard, std::string_view sample,
                      std::vector<std::string_view>* columns) {
  columns->clear();
  size_t head = 0;
  for (const MdsColumn& column : shard.columns) head += column.fixed_size == 0 ? 4 : 0;
  if (sample.size() < head) {
    return Corrupt(fmt::format("sample of {} bytes is shorter than its head of {}", sample.size(),
                               head));
  }
  size_t body = head;
  size_t head_position = 0;
  for (const MdsColumn& column : shard.columns) {
    size_t bytes = static_cast<size_t>(column.fixed_size);
    if (column.fixed_size == 0) {
      bytes = Load<uint32_t>(sample.data() + head_position);
      head_position += 4;
    }
    if (bytes > sample.size() - body) {
      return Corrupt(fmt::format("column '{}' claims {} bytes at offset {} of a sample of {}",
                                 column.name, bytes, body, sample.size()));
    }
    columns->push_back(sample.substr(body, bytes));
    body += bytes;
  }
  if (body != sample.size()) {
    return Corrupt(fmt::format("sample has {} bytes after its last column", sample.size() - body));
  }
  return {};
}

Result<MdsTokens> ParseMdsTokens(std::string_view encoding, std::string_view value) {
  if (encoding == "bytes") {
    if (value.size() % 8 != 0) {
      return Corrupt(fmt::format("{} bytes are no row of int64 token ids", value.size()));
    }
    return MdsTokens{MdsTokens::Type::kInt64, value.data(), static_cast<int64_t>(value.size() / 8)};
  }
  TESSERA_ASSIGN(const Array array, ParseArray(encoding, value));
  MdsTokens tokens{MdsTokens::Type::kUint16, array.values.data(), array.count};
  if (array.type->name == "uint16") return tokens;
  tokens.type = MdsTokens::Type::kInt32;
  if (array.type->name == "int32") return tokens;
  tokens.type = MdsTokens::Type::kUint32;
  if (array.type->name == "uint32") return tokens;
  tokens.type = MdsTokens::Type::kInt64;
  if (array.type->name == "int64") return tokens;
  return Unsupported(fmt::format("token ids of type {}; uint16, int32, uint32 and int64 are read",
                                 array.type->name));
}

int64_t CopyMdsTokens(const MdsTokens& tokens, int64_t begin, int64_t count, int32_t* out) {
  switch (tokens.type) {
    case MdsTokens::Type::kUint16: return Widen<uint16_t>(tokens.data + 2 * begin, count, out);
    case MdsTokens::Type::kInt32: return Widen<int32_t>(tokens.data + 4 * begin, count, out);
    case MdsTokens::Type::kUint32: return Widen<uint32_t>(tokens.data + 4 * begin, count, out);
    case MdsTokens::Type::kInt64: return Widen<int64_t>(tokens.data + 8 * begin, count, out);
  }
  return -1;
}

std::optional<int64_t> MdsFixedSize(std::string_view encoding) {
  if (encoding == "int") return 8;
  if (const ScalarType* type = FindScalar(encoding)) return type->bytes;
  for (const std::string_view name : {"bytes", "str", "str_int", "str_float", "str_decimal", "json",
                                      "pil", "jpeg", "png", "ndarray"}) {
    if (encoding == name) return 0;
  }
  const std::vector<std::string_view> parts = Split(encoding, ':');
  if (parts[0] != "ndarray" || parts.size() > 3) return std::nullopt;
  const ScalarType* type = FindScalar(parts[1]);
  if (type == nullptr) return std::nullopt;
  if (parts.size() == 2) return 0;
  const Result<std::vector<int64_t>> shape = ParseShape(parts[2]);
  if (!shape.ok()) return std::nullopt;
  int64_t bytes = type->bytes;
  for (const int64_t dim : *shape) bytes *= dim;
  return bytes;
}

Result<Json> MdsValueToJson(std::string_view encoding, std::string_view value,
                            int64_t max_elements) {
  if (encoding == "str" || encoding == "str_int" || encoding == "str_float" ||
      encoding == "str_decimal") {
    return Json(std::string(value));
  }
  if (encoding == "json") return ParseJson(value, "json value");
  if (encoding == "int" || FindScalar(encoding) != nullptr) {
    const ScalarType* type = FindScalar(encoding == "int" ? "int64" : encoding);
    if (static_cast<int64_t>(value.size()) != type->bytes) {
      return Corrupt(fmt::format("{} value has {} bytes", encoding, value.size()));
    }
    return ScalarToJson(*type, value.data());
  }
  if (encoding.rfind("ndarray", 0) == 0) {
    TESSERA_ASSIGN(const Array array, ParseArray(encoding, value));
    Json values = Json::array();
    for (int64_t i = 0; i < std::min(array.count, max_elements); ++i) {
      values.push_back(ScalarToJson(*array.type, array.values.data() + i * array.type->bytes));
    }
    return Json{{"dtype", std::string(array.type->name)}, {"shape", array.shape}, {"values", values}};
  }
  const int64_t shown = std::min<int64_t>(max_elements, static_cast<int64_t>(value.size()));
  return Json{{"bytes", value.size()},
              {"hex", HexOf(reinterpret_cast<const uint8_t*>(value.data()), shown)}};
}

std::string PythonJson(const Json& value) {
  std::string out;
  if (value.is_object()) {
    out = "{";
    for (const auto& [key, member] : value.items()) {
      if (out.size() > 1) out += ", ";
      out += Json(key).dump(-1, ' ', true) + ": " + PythonJson(member);
    }
    return out + "}";
  }
  if (value.is_array()) {
    out = "[";
    for (const Json& element : value) {
      if (out.size() > 1) out += ", ";
      out += PythonJson(element);
    }
    return out + "]";
  }
  return value.dump(-1, ' ', true);
}

}  // namespace tessera
