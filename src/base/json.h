// JSON as a value (nlohmann::json), parsed with errors that say where.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/error.h"

namespace tessera {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;  // keeps the order in which keys were added

// The text of a value, on one line or indented; bytes that are no UTF-8 become U+FFFD. Called in
// place of dump(), whose templates cost a second of compiling in each file.
std::string JsonText(const Json& value, int indent = -1);
std::string JsonText(const OrderedJson& value, int indent = -1);

// Parses `text`; nesting deeper than 64 levels is refused. `source` names the file in errors.
Result<Json> ParseJson(std::string_view text, std::string_view source);
Result<Json> ReadJsonFile(const std::filesystem::path& path,
                          int64_t max_bytes = int64_t{1} << 30);

// A typed member of an object, or an error that names the source, the key and what was found.
Result<int64_t> JsonInt(const Json& object, std::string_view key, std::string_view source);
Result<double> JsonNumber(const Json& object, std::string_view key, std::string_view source);
Result<std::string> JsonString(const Json& object, std::string_view key, std::string_view source);

}  // namespace tessera
