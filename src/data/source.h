// Named sources of documents: which files belong to a source, and what each file is called.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace tessera {

enum class SourceFormat {
  kAuto,   // By extension: txt, md, rst, pod are text, jsonl is lines; .gz .zst .xz are looked through.
  kText,   // Every file is one document.
  kJsonl,  // Every line is one document.
};

Result<SourceFormat> ParseSourceFormat(std::string_view name);
std::string_view SourceFormatName(SourceFormat format);

struct SourceConfig {
  std::string name;
  std::vector<std::string> paths;  // Files, folders, or patterns such as docs/**/*.md.
  SourceFormat format = SourceFormat::kAuto;
  std::string text_field = "text";  // jsonl: the member that holds the text.
  std::string id_field = "id";      // jsonl: names the document; its line number where absent.
  std::string license;
  // How often a training document is repeated: 2.5 gives each two copies and half of them a third,
  // 0.25 keeps a quarter; chosen by the hash of the document's identity.
  double weight = 1.0;
};

// Checks names (unique, no control characters), paths and weights.
Status ValidateSources(const std::vector<SourceConfig>& sources);

struct SourceFile {
  std::string path;
  // The path relative to the folder, the pattern's fixed part, or the file's own folder. Where two
  // paths of a source hold the same relative name, the later one is "<index of its path>:name".
  std::string identity;
  bool jsonl = false;
  int64_t bytes = 0;
  int64_t mtime_ns = 0;
};

struct SourceListing {
  std::vector<SourceFile> files;  // In the order of `paths`, then bytewise; each file once.
  // Files inside folders that were left out since their extension is not known: extension, count.
  std::map<std::string, int64_t> skipped_extensions;
};

// Unknown extensions are left out (and counted) inside a folder, are an error in a pattern, and are
// read as text when the file itself was named.
Result<SourceListing> ListSource(const SourceConfig& source);

}  // namespace tessera
