#include <gtest/gtest.h>

#include <filesystem>
#include <set>
#include <string>

#include "base/files.h"
#include "train/run_schema.h"

namespace tessera {
namespace {

TEST(RunReference, IsWhatTheDocumentationSays) {
  const auto path = std::filesystem::path(TESSERA_SOURCE_DIR) / "docs" / "run-file.md";
  const Result<std::string> text = ReadFile(path);
  ASSERT_TRUE(text.ok()) << text.error().message;
  EXPECT_EQ(*text, RunFileReference())
      << "run: build/release/tessera plan --reference > docs/run-file.md";
}

TEST(RunReference, NamesEveryKeyOnce) {
  std::set<std::string> seen;
  const std::string reference = RunFileReference();
  for (const RunKey& key : RunSchema()) {
    EXPECT_TRUE(seen.insert(key.path).second) << key.path << " is declared twice";
    EXPECT_NE(reference.find("| `" + key.path + "` |"), std::string::npos) << key.path;
  }
}

}  // namespace
}  // namespace tessera
