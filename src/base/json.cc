#include "base/json.h"

#include <fmt/format.h>

#include "base/files.h"

namespace tessera {

std::string JsonText(const Json& value, int indent) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}
std::string JsonText(const OrderedJson& value, int indent) {
  return value.dump(indent, ' ', false, OrderedJson::error_handler_t::replace);
}

Result<Json> ParseJson(std::string_view text, std::string_view source) {
  // The parser recurses by level, so the depth is bounded before it runs.
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
      continue;
    }
    if (c == '"') in_string = true;
    if (c == '{' || c == '[') {
      if (++depth > 64) {
        return Corrupt(fmt::format("{}: JSON nested deeper than 64 levels at byte {}", source, i));
      }
    }
    if (c == '}' || c == ']') --depth;
  }
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& error) {
    // Of "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error while
    // parsing value - unexpected ..." only the place and what stands there.
    std::string_view detail = error.what();
    constexpr std::string_view kPlace = "parse error at ";
    if (const size_t at = detail.find(kPlace); at != std::string_view::npos) {
      detail.remove_prefix(at + kPlace.size());
    }
    if (error.byte > text.size()) {
      return Corrupt(fmt::format("{}: not valid JSON: it ends too early, after {} bytes: the file was "
                                 "cut off or not written to its end ({})",
                                 source, text.size(), detail));
    }
    return Corrupt(fmt::format("{}: not valid JSON: {}", source, detail));
  } catch (const Json::exception& exception) {
    return Corrupt(fmt::format("{}: not valid JSON: {}", source, exception.what()));
  }
}

Result<Json> ReadJsonFile(const std::filesystem::path& path, int64_t max_bytes) {
  TESSERA_ASSIGN(const std::string text, ReadFile(path, max_bytes));
  return ParseJson(text, path.string());
}

namespace {

Result<const Json*> Member(const Json& object, std::string_view key, std::string_view source) {
  if (!object.is_object()) {
    return Corrupt(fmt::format("{}: expected an object with key '{}', found {}", source, key,
                               object.type_name()));
  }
  const auto it = object.find(std::string(key));
  if (it == object.end()) return Corrupt(fmt::format("{}: key '{}' is missing", source, key));
  return &*it;
}

Error WrongType(const Json& value, std::string_view key, std::string_view source,
                std::string_view wanted) {
  std::string found = JsonText(value);
  if (found.size() > 60) found = found.substr(0, 60) + "...";
  return Corrupt(fmt::format("{}: key '{}' must be {}, found {}", source, key, wanted, found));
}

}  // namespace

Result<int64_t> JsonInt(const Json& object, std::string_view key, std::string_view source) {
  TESSERA_ASSIGN(const Json* value, Member(object, key, source));
  if (!value->is_number_integer()) return WrongType(*value, key, source, "an integer");
  if (value->is_number_unsigned() && value->get<uint64_t>() > uint64_t{INT64_MAX}) {
    return WrongType(*value, key, source, "an integer below 2^63");
  }
  return value->get<int64_t>();
}

Result<double> JsonNumber(const Json& object, std::string_view key, std::string_view source) {
  TESSERA_ASSIGN(const Json* value, Member(object, key, source));
  if (!value->is_number()) return WrongType(*value, key, source, "a number");
  return value->get<double>();
}

Result<std::string> JsonString(const Json& object, std::string_view key, std::string_view source) {
  TESSERA_ASSIGN(const Json* value, Member(object, key, source));
  if (!value->is_string()) return WrongType(*value, key, source, "a string");
  return value->get<std::string>();
}

}  // namespace tessera
