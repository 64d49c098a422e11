#include "instruction_counts.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <cstdio>

#include "base/strings.h"

namespace tessera {

namespace {

// Variant of the kernels that is counted: valgrind knows no AVX-512.
constexpr const char* kIsa = "avx2";

struct Output {
  int status = 0;
  std::string text;  // stdout and stderr
};

Output Shell(const std::string& command) {
  Output output;
  std::FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) {
    output.status = -1;
    return output;
  }
  char buffer[4096];
  for (size_t got = 0; (got = std::fread(buffer, 1, sizeof(buffer), pipe)) > 0;) {
    output.text.append(buffer, got);
  }
  const int ended = ::pclose(pipe);
  output.status = WIFEXITED(ended) ? WEXITSTATUS(ended) : -1;
  return output;
}

}  // namespace

Comparison CompareCounts(const InstructionCounts& measured, const InstructionCounts& committed) {
  Comparison comparison;
  for (const auto& [name, count] : measured) {
    const auto known = committed.find(name);
    if (known == committed.end()) {
      comparison.failures.push_back(fmt::format("{}: {} instructions, none committed", name, count));
      continue;
    }
    const double ratio = static_cast<double>(count) / static_cast<double>(known->second);
    const std::string text = fmt::format("{}: {} instructions, {:.2f} times the committed {}", name,
                                         count, ratio, known->second);
    if (ratio > kWorse) comparison.failures.push_back(text);
    if (ratio < kBetter) comparison.notes.push_back(text);
  }
  for (const auto& [name, count] : committed) {
    if (!measured.contains(name)) {
      comparison.notes.push_back(fmt::format("{}: committed, but there is no such case", name));
    }
  }
  return comparison;
}

Result<int64_t> ParseCollected(const std::string& text) {
  const size_t at = text.rfind("Collected :");
  if (at == std::string::npos) {
    return Corrupt("callgrind printed no 'Collected :': " + text.substr(0, 500));
  }
  const size_t begin = at + 11;
  const auto count = ParseInt(Trim(std::string_view(text).substr(begin, text.find('\n', begin) - begin)));
  if (!count || *count <= 0) return Corrupt("callgrind counted nothing: " + text.substr(at, 60));
  return *count;
}

const char* CompilerFamily() {
#if defined(__clang__)
  return "clang";
#else
  return "gcc";
#endif
}

Result<InstructionCounts> CountsFromJson(const Json& json, const std::string& family) {
  if (!json.is_object() || !json.contains(family) || !json.at(family).is_object()) {
    return NotFound(fmt::format("no counts of {}", family));
  }
  InstructionCounts counts;
  for (const auto& [name, count] : json.at(family).items()) {
    if (!count.is_number_integer() || count.get<int64_t>() <= 0) {
      return Corrupt(fmt::format("the count of {} is {}", name, JsonText(count)));
    }
    counts[name] = count.get<int64_t>();
  }
  return counts;
}

bool HasValgrind() { return Shell("valgrind --version").status == 0; }

Result<int64_t> CountCase(const std::string& cases, const std::string& name) {
  const Output output = Shell(fmt::format(
      "TESSERA_ISA={} valgrind --tool=callgrind --callgrind-out-file=/dev/null "
      "--toggle-collect=TesseraMeasured '{}' {}",
      kIsa, cases, name));
  if (output.status != 0) {
    return Internal(fmt::format("{} ended with {}: {}", name, output.status,
                                output.text.substr(0, 1000)));
  }
  Result<int64_t> count = ParseCollected(output.text);
  if (!count.ok()) return count.error().WithContext(name);
  return count;
}

Result<InstructionCounts> CountAll(const std::string& cases) {
  const Output list = Shell(fmt::format("'{}' --list", cases));
  if (list.status != 0) return Internal(fmt::format("{}: {}", cases, list.text));
  InstructionCounts counts;
  for (const std::string_view name : Split(list.text, '\n')) {
    if (name.empty()) continue;
    TESSERA_ASSIGN(counts[std::string(name)], CountCase(cases, std::string(name)));
  }
  return counts;
}

}  // namespace tessera
