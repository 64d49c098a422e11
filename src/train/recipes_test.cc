// Every run file that ships loads, resolves to itself, and describes the model that its name says.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/files.h"
#include "train/run_config.h"
#include "train/run_schema.h"

namespace tessera {
namespace {

std::filesystem::path Recipes() { return std::filesystem::path(TESSERA_SOURCE_DIR) / "recipes"; }

std::vector<std::string> AllRecipes() {
  const Result<std::vector<std::string>> files = ExpandFiles((Recipes() / "**/*.yaml").string());
  EXPECT_TRUE(files.ok());
  std::vector<std::string> list = files.ok() ? *files : std::vector<std::string>{};
  const Result<std::vector<std::string>> top = ExpandFiles((Recipes() / "*.yaml").string());
  for (const std::string& file : top.ok() ? *top : std::vector<std::string>{}) {
    if (std::find(list.begin(), list.end(), file) == list.end()) list.push_back(file);
  }
  return list;
}

TEST(Recipes, AllLoadAndResolveToThemselves) {
  const std::vector<std::string> files = AllRecipes();
  EXPECT_GE(files.size(), 24u);
  for (const std::string& file : files) {
    const Result<RunConfig> config = ReadRunFile(file);
    ASSERT_TRUE(config.ok()) << config.error().message;
    EXPECT_TRUE(CheckTrainable(*config).ok()) << file;
    const std::string yaml = RunConfigToYaml(*config);
    const Result<RunConfig> again = ParseRunFile(yaml, file);
    ASSERT_TRUE(again.ok()) << again.error().message;
    EXPECT_EQ(RunConfigToYaml(*again), yaml) << file;
  }
}

TEST(Recipes, HaveTheSizesOfTheirNames) {
  for (const char* family : {"mpt", "llama"}) {
    for (const auto& [name, millions] : std::map<std::string, double>{{"10m", 10},
                                                                      {"30m", 30},
                                                                      {"125m", 125},
                                                                      {"350m", 350},
                                                                      {"760m", 760},
                                                                      {"1.3b", 1300},
                                                                      {"2.7b", 2700},
                                                                      {"6.7b", 6700},
                                                                      {"13b", 13000},
                                                                      {"30b", 30000},
                                                                      {"70b", 65000}}) {
      const auto path = Recipes() / family / (name + ".yaml");
      Result<RunConfig> config = ReadRunFile(path);
      ASSERT_TRUE(config.ok()) << config.error().message;
      EXPECT_EQ(config->model.family, family);
      EXPECT_EQ(config->run_name, fmt::format("{}-{}", family, name));
      if (config->model.vocab_size == 0) {
        config->model.vocab_size = config->tokenizer.train.vocab_size;
      }
      const double count = static_cast<double>(CountParameters(config->model)) / 1e6;
      // Untied heads make the small Llama-style twins up to 1.55 times as large, grouped-query
      // attention the large ones a tenth smaller.
      const double high = std::string_view(family) == "llama" ? 1.55 : 1.05;
      EXPECT_GT(count, 0.85 * millions) << path;
      EXPECT_LT(count, high * millions) << path;
    }
  }
}

}  // namespace
}  // namespace tessera
