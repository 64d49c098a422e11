// The metrics of a run: one JSON object a line, each line whole on disk before the next step.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"

namespace tessera {

class MetricsFile {
 public:
  // Starts an empty file.
  static Result<MetricsFile> Create(const std::filesystem::path& path);
  // Goes on with an existing file (or an empty one) after dropping every line for which `keep` is
  // false, and a last line that a crash cut off. The file is replaced atomically.
  static Result<MetricsFile> Resume(const std::filesystem::path& path,
                                    const std::function<bool(const Json&)>& keep);

  // Members keep the order in which they were added.
  Status Write(const OrderedJson& line);
  const std::filesystem::path& path() const { return path_; }

 private:
  MetricsFile(FileWriter writer, std::filesystem::path path)
      : writer_(std::move(writer)), path_(std::move(path)) {}
  FileWriter writer_;
  std::filesystem::path path_;
};

// Calls `visit` with every whole line; lines that are not JSON objects are left out.
Status VisitMetrics(const std::filesystem::path& path,
                    const std::function<void(const Json& line, std::string_view text)>& visit);

}  // namespace tessera
