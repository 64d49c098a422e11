#include "rules.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <string_view>

#include "base/strings.h"

namespace tessera::architecture {

namespace fs = std::filesystem;

namespace {

constexpr size_t kMaxLines = 800;
constexpr size_t kMaxPageLines = 40;

// What each folder may include besides itself. cli may include every folder.
const std::map<std::string, std::set<std::string>, std::less<>>& AllowedArrows() {
  static const std::map<std::string, std::set<std::string>, std::less<>> arrows = {
      {"base", {}},
      {"store", {"base"}},
      {"tensor", {"base"}},
      {"kernels", {"base", "tensor"}},
      {"model", {"base", "store", "tensor", "kernels"}},
      {"tokenizer", {"base", "store"}},
      {"data", {"base", "store", "tokenizer"}},
      {"parallel", {"base", "tensor"}},
      {"checkpoint", {"base", "store", "tensor", "parallel"}},
      {"track", {"base", "store"}},
      {"orchestrate", {"base", "store"}},
      {"eval", {"base", "store", "tensor", "kernels", "model", "tokenizer", "data"}},
      {"serve", {"base", "store", "tensor", "kernels", "model", "tokenizer"}},
      {"train",
       {"base", "store", "tensor", "kernels", "model", "tokenizer", "data", "parallel",
        "checkpoint", "track", "eval"}},
  };
  return arrows;
}

bool HasExtension(const fs::path& path, std::initializer_list<std::string_view> extensions) {
  const std::string extension = path.extension().string();
  return std::find(extensions.begin(), extensions.end(), extension) != extensions.end();
}

// Files below `folder` in a stable order; empty where the folder does not exist.
std::vector<fs::path> FilesBelow(const fs::path& folder) {
  std::vector<fs::path> files;
  if (!fs::is_directory(folder)) return files;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<std::string> Lines(const fs::path& file) {
  std::ifstream stream(file);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(std::move(line));
  return lines;
}

// The path inside `#include "..."`, empty on any other line.
std::string_view QuotedInclude(std::string_view line) {
  line = Trim(line);
  if (line.empty() || line.front() != '#') return {};
  line = Trim(line.substr(1));
  constexpr std::string_view kWord = "include";
  if (line.substr(0, kWord.size()) != kWord) return {};
  line = Trim(line.substr(kWord.size()));
  if (line.empty() || line.front() != '"') return {};
  const size_t end = line.find('"', 1);
  return end == std::string_view::npos ? std::string_view{} : line.substr(1, end - 1);
}

}  // namespace

Findings CheckArrows(const fs::path& root) {
  Findings findings;
  const fs::path source = root / "src";
  for (const fs::path& file : FilesBelow(source)) {
    if (!HasExtension(file, {".h", ".cc", ".cu", ".cuh", ".inc"})) continue;
    const std::string folder = fs::relative(file, source).begin()->string();
    const std::string name = fs::relative(file, root).string();
    const auto allowed = AllowedArrows().find(folder);
    if (folder != "cli" && allowed == AllowedArrows().end()) {
      findings.push_back(fmt::format("{}: folder '{}' is not in the map of the design", name, folder));
      continue;
    }
    const std::vector<std::string> lines = Lines(file);
    for (size_t i = 0; i < lines.size(); ++i) {
      const std::string_view include = QuotedInclude(lines[i]);
      if (include.empty()) continue;
      const size_t slash = include.find('/');
      if (slash == std::string_view::npos || include[0] == '.') {
        findings.push_back(fmt::format("{}:{}: write the path from src/ ({})", name, i + 1, include));
        continue;
      }
      const std::string target(include.substr(0, slash));
      if (target == folder || (folder == "cli" && AllowedArrows().count(target) == 1)) continue;
      if (folder == "cli" || allowed->second.count(target) == 0) {
        findings.push_back(
            fmt::format("{}:{}: {} must not include {} ({})", name, i + 1, folder, target, include));
      }
    }
  }
  return findings;
}

Findings CheckFileSizes(const fs::path& root) {
  Findings findings;
  for (const char* folder : {"src", "tests", "bench", "scripts", "cmake", "web"}) {
    for (const fs::path& file : FilesBelow(root / folder)) {
      if (!HasExtension(file, {".h", ".cc", ".cu", ".cuh", ".inc", ".py", ".sh", ".cmake", ".js",
                               ".css"})) {
        continue;
      }
      const std::vector<std::string> lines = Lines(file);
      if (lines.size() <= kMaxLines) continue;
      const bool generated = std::any_of(lines.begin(), lines.begin() + 3, [](const auto& line) {
        return line.find(" by scripts/") != std::string::npos;
      });
      if (generated) continue;
      findings.push_back(fmt::format("{}: {} lines, the limit is {}: split it by responsibility",
                                     fs::relative(file, root).string(), lines.size(), kMaxLines));
    }
  }
  return findings;
}

Findings CheckHeaders(const fs::path& root) {
  Findings findings;
  for (const char* folder : {"src", "tests", "bench"}) {
    for (const fs::path& file : FilesBelow(root / folder)) {
      if (!HasExtension(file, {".h", ".cuh"})) continue;
      const std::string name = fs::relative(file, root).string();
      const std::vector<std::string> lines = Lines(file);
      if (lines.empty() || lines[0].rfind("// ", 0) != 0) {
        findings.push_back(name + ":1: begin with a comment that says what the file is for");
      }
      // Only comments and empty lines may come before it.
      const auto first_code = std::find_if(lines.begin(), lines.end(), [](const std::string& line) {
        return !Trim(line).empty() && line.rfind("//", 0) != 0;
      });
      if (first_code == lines.end() || Trim(*first_code) != "#pragma once") {
        findings.push_back(name + ": #pragma once must come before all code");
      }
    }
  }
  return findings;
}

Findings CheckFolderPages(const fs::path& root) {
  Findings findings;
  if (!fs::is_directory(root / "src")) return findings;
  for (const fs::directory_entry& entry : fs::directory_iterator(root / "src")) {
    if (!entry.is_directory() || FilesBelow(entry.path()).empty()) continue;
    const std::string name = "src/" + entry.path().filename().string() + "/README.md";
    const std::vector<std::string> lines = Lines(root / name);
    if (lines.empty()) findings.push_back(name + " is missing or empty");
    if (lines.size() > kMaxPageLines) {
      findings.push_back(fmt::format("{}: {} lines, the limit is {}", name, lines.size(),
                                     kMaxPageLines));
    }
  }
  std::sort(findings.begin(), findings.end());
  return findings;
}

}  // namespace tessera::architecture
