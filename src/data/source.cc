#include "data/source.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cmath>
#include <filesystem>
#include <set>

#include "base/files.h"
#include "base/strings.h"

namespace tessera {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kSupported =
    "txt, text, md, markdown, rst, pod (one document a file), jsonl, ndjson (one a line), each also "
    "with .gz, .zst or .xz behind";

std::string Lower(std::string text) {
  for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return text;
}

// The last extension that is not one of a compression, in lower case: ".md" of "a.MD.gz".
std::string InnerExtension(const fs::path& path) {
  fs::path name = path.filename();
  std::string extension = Lower(name.extension().string());
  if (extension == ".gz" || extension == ".zst" || extension == ".xz") {
    name = name.stem();
    extension = Lower(name.extension().string());
  }
  return extension;
}

bool IsTextExtension(std::string_view extension) {
  for (const std::string_view known : {".txt", ".text", ".md", ".markdown", ".rst", ".pod"}) {
    if (extension == known) return true;
  }
  return false;
}

bool IsJsonlExtension(std::string_view extension) {
  return extension == ".jsonl" || extension == ".ndjson";
}

// The folder to which identities are relative.
fs::path RootOf(const std::string& pattern) {
  std::error_code code;
  const fs::path path(pattern);
  if (fs::is_directory(path, code)) return path;
  if (fs::is_regular_file(path, code)) return path.parent_path();
  fs::path root;
  for (const fs::path& part : path) {
    if (part.string().find_first_of("*?[") != std::string::npos) break;
    root /= part;
  }
  return root;
}

bool IsHidden(const fs::path& relative) {
  for (const fs::path& part : relative) {
    const std::string name = part.string();
    if (name.size() > 1 && name[0] == '.' && name != "..") return true;
  }
  return false;
}

}  // namespace

Result<SourceFormat> ParseSourceFormat(std::string_view name) {
  if (name == "auto") return SourceFormat::kAuto;
  if (name == "text") return SourceFormat::kText;
  if (name == "jsonl") return SourceFormat::kJsonl;
  return InvalidArgument(fmt::format("format '{}' is none of auto, text, jsonl", name));
}

std::string_view SourceFormatName(SourceFormat format) {
  switch (format) {
    case SourceFormat::kAuto: return "auto";
    case SourceFormat::kText: return "text";
    case SourceFormat::kJsonl: return "jsonl";
  }
  return "auto";
}

Status ValidateSources(const std::vector<SourceConfig>& sources) {
  if (sources.empty()) {
    return InvalidArgument("no sources: name at least one, for instance --source docs=PATH");
  }
  std::set<std::string> names;
  for (const SourceConfig& source : sources) {
    if (source.name.empty()) return InvalidArgument("a source has an empty name");
    for (const char c : source.name) {
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
        return InvalidArgument(fmt::format("source '{}' has control characters in its name",
                                           source.name));
      }
    }
    if (!names.insert(source.name).second) {
      return InvalidArgument(fmt::format("two sources are named '{}'; rename one", source.name));
    }
    if (source.paths.empty()) {
      return InvalidArgument(fmt::format("source '{}' has no paths", source.name));
    }
    // The bound keeps a typing error from writing a dataset a million times its size.
    if (!(source.weight > 0) || source.weight > 1000) {
      return InvalidArgument(fmt::format("source '{}': weight {} is not above 0 and at most 1000",
                                         source.name, source.weight));
    }
    if (source.text_field.empty()) {
      return InvalidArgument(fmt::format("source '{}': text_field is empty", source.name));
    }
  }
  return {};
}

Result<SourceListing> ListSource(const SourceConfig& source) {
  SourceListing listing;
  std::set<std::string> seen_paths;
  std::set<std::string> seen_identities;
  for (size_t k = 0; k < source.paths.size(); ++k) {
    const std::string& pattern = source.paths[k];
    const auto in_source = [&](const Error& error) {
      return error.WithContext(fmt::format("source '{}'", source.name));
    };
    std::error_code code;
    const bool is_folder = fs::is_directory(pattern, code);
    const bool is_file = fs::is_regular_file(pattern, code);
    Result<std::vector<std::string>> paths = ExpandFiles(pattern);
    if (!paths.ok()) return in_source(paths.error());
    const fs::path root = RootOf(pattern);
    for (const std::string& path : *paths) {
      const fs::path relative = root.empty() ? fs::path(path) : fs::path(path).lexically_relative(root);
      const std::string extension = InnerExtension(path);
      SourceFile file{.path = path, .identity = relative.generic_string()};
      const bool known = IsTextExtension(extension) || IsJsonlExtension(extension);
      file.jsonl = source.format == SourceFormat::kJsonl ||
                   (source.format == SourceFormat::kAuto && IsJsonlExtension(extension));
      if (is_folder && IsHidden(relative)) continue;
      if (source.format == SourceFormat::kAuto && !known && !is_file) {
        if (is_folder) {
          ++listing.skipped_extensions[extension.empty() ? "(none)" : extension];
          continue;
        }
        return in_source(InvalidArgument(fmt::format(
            "'{}' has the unknown extension '{}'; known are {}. Name the file itself, or set the "
            "source's format to text or jsonl",
            path, extension, kSupported)));
      }
      const fs::path canonical = fs::weakly_canonical(path, code);
      if (!seen_paths.insert(code ? path : canonical.string()).second) continue;
      if (!seen_identities.insert(file.identity).second) {
        file.identity = fmt::format("{}:{}", k, file.identity);
        if (!seen_identities.insert(file.identity).second) {
          return in_source(InvalidArgument(fmt::format("two files are both called '{}'; put them "
                                                       "into sources of their own",
                                                       file.identity)));
        }
      }
      struct stat info = {};
      if (::stat(path.c_str(), &info) != 0) return in_source(ErrnoError("cannot stat", path, errno));
      file.bytes = info.st_size;
      file.mtime_ns = int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
      listing.files.push_back(std::move(file));
    }
  }
  if (listing.files.empty()) {
    std::string found;
    for (const auto& [extension, count] : listing.skipped_extensions) {
      found += fmt::format("{}{} ({})", found.empty() ? "" : ", ", extension, count);
    }
    return InvalidArgument(fmt::format("source '{}': no file of a known kind in {} (found {}); known "
                                       "are {}. To read others, set the source's format to text or "
                                       "jsonl",
                                       source.name, Join(source.paths, ", "),
                                       found.empty() ? "none" : found, kSupported));
  }
  return listing;
}

}  // namespace tessera
