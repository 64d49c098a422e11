// The resolved run file as JSON and as YAML.
#include <fmt/format.h>

#include "base/strings.h"
#include "train/run_schema.h"

namespace tessera {

namespace {

// One tree in the order of the schema.
OrderedJson ResolvedTree(const RunConfig& config) {
  OrderedJson root = OrderedJson::object();
  for (const RunKey& key : RunSchema()) {
    if (!key.write) continue;
    OrderedJson value = key.write(config);
    // Null is the default for all keys but those where it says none.
    if (value.is_null() && !key.null_means_none) continue;
    OrderedJson* at = &root;
    for (std::string_view part : Split(key.path, '.')) at = &(*at)[std::string(part)];
    *at = std::move(value);
  }
  return root;
}

// A text that YAML would read as it stands, in every position.
bool IsPlainWord(const std::string& text) {
  if (text.empty() || text.size() > 200) return false;
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  if (!is_letter(text.front()) && text.front() != '/') return false;
  for (const char c : text) {
    const bool ok =
        is_letter(c) || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '/' || c == '.';
    if (!ok) return false;
  }
  return text != "null" && text != "Null" && text != "NULL" && text != "true" && text != "false";
}

// Numbers keep their kind when read again; other texts are quoted as in JSON, which YAML includes.
std::string Scalar(const OrderedJson& value) {
  if (value.is_string()) {
    const std::string& text = value.get_ref<const std::string&>();
    if (IsPlainWord(text) || (ParseDuration(text).ok() && text.size() < 40)) return text;
  }
  return JsonText(value);
}

void Emit(const OrderedJson& map, int indent, std::string* out) {
  for (const auto& [key, value] : map.items()) {
    out->append(static_cast<size_t>(indent), ' ');
    *out += IsPlainWord(key) ? key : JsonText(OrderedJson(key));
    if (value.is_object() && !value.empty()) {
      *out += ":\n";
      Emit(value, indent + 2, out);
    } else {
      *out += fmt::format(": {}\n", Scalar(value));
    }
  }
}

}  // namespace

Json RunConfigToJson(const RunConfig& config) { return Json(ResolvedTree(config)); }

std::string RunConfigToYaml(const RunConfig& config) {
  std::string out;
  Emit(ResolvedTree(config), 0, &out);
  return out;
}

}  // namespace tessera
