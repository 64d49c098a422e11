#include "track/metrics_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <fstream>

namespace tessera {

namespace fs = std::filesystem;

Result<MetricsFile> MetricsFile::Create(const fs::path& path) {
  TESSERA_ASSIGN(FileWriter writer, FileWriter::Create(path));
  return MetricsFile(std::move(writer), path);
}

Status VisitMetrics(const fs::path& path,
                    const std::function<void(const Json& line, std::string_view text)>& visit) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return NotFound(fmt::format("cannot read the metrics '{}'", path.string()));
  std::string text;
  while (std::getline(file, text)) {
    // getline sets eof only when the last line has no end: it was cut off.
    if (file.eof()) break;
    const Json line = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (line.is_object()) visit(line, text);
  }
  return {};
}

Result<MetricsFile> MetricsFile::Resume(const fs::path& path,
                                        const std::function<bool(const Json&)>& keep) {
  if (PathExists(path)) {
    const fs::path temporary = path.string() + fmt::format(".tmp.{}", ::getpid());
    {
      TESSERA_ASSIGN(FileWriter writer, FileWriter::Create(temporary));
      std::string kept;
      Status written;
      TESSERA_TRY(VisitMetrics(path, [&](const Json& line, std::string_view text) {
        if (!keep(line)) return;
        kept.append(text);
        kept += '\n';
        if (kept.size() > (size_t{1} << 20)) {
          if (written.ok()) written = writer.Write(kept);
          kept.clear();
        }
      }));
      TESSERA_TRY(written);
      TESSERA_TRY(writer.Write(kept));
      TESSERA_TRY(writer.Sync());
      TESSERA_TRY(writer.Close());
    }
    TESSERA_TRY(RenamePath(temporary, path));
  }
  TESSERA_ASSIGN(FileWriter writer, FileWriter::Append(path));
  return MetricsFile(std::move(writer), path);
}

Status MetricsFile::Write(const OrderedJson& line) {
  // One write call a line: what a reader sees and what a crash leaves is whole lines.
  return writer_.Write(JsonText(line) + "\n");
}

}  // namespace tessera
