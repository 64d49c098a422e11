// YAML as a tree of values that remember where they stand, with bounds against hostile input and
// overrides from the command line.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace tessera {

struct YamlMember;

struct YamlValue {
  enum class Kind { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  std::string text;           // scalar: as written, without quotes
  bool quoted = false;        // scalar: text, never a number, true, false or null
  int64_t line = 0;           // from 1; 0 when it comes from an override
  std::string override_text;  // the whole override that set it, or empty
  std::vector<YamlValue> items;
  std::vector<YamlMember> members;  // in the file's order, keys unique

  const YamlValue* Find(std::string_view key) const;
  bool is_null() const { return kind == Kind::kNull; }
  // For messages: "'text'", "a list", "a section", "nothing".
  std::string Describe() const;
};

struct YamlMember {
  std::string key;
  YamlValue value;
};

// One thing that is wrong, and where. Sorted by line they make the report.
struct RunFileProblem {
  int64_t line = 0;           // 0: not in the file
  std::string override_text;  // or empty
  std::string message;
};

inline constexpr int64_t kMaxRunFileBytes = int64_t{1} << 20;
inline constexpr int64_t kMaxYamlDepth = 32;
inline constexpr int64_t kMaxYamlNodes = 20000;  // with aliases written out

// Parses one document whose root is a map (or empty). A syntax error or a passed bound is the
// result's error; duplicate and unusable keys are added to `problems` and reading goes on.
Result<YamlValue> ParseYaml(std::string_view text, std::string_view source,
                            std::vector<RunFileProblem>* problems);

// Sets `key.path=value` in the tree and makes the sections on the way. A value that begins with
// [ { " or ' is read as YAML, anything else is taken as it stands.
void ApplyOverride(std::string_view override_text, YamlValue* root,
                   std::vector<RunFileProblem>* problems);

}  // namespace tessera
