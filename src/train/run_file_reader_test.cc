#include "train/run_file_reader.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace tessera {
namespace {

using Problems = std::vector<RunFileProblem>;

TEST(RunFileReader, KeepsLinesAndKinds) {
  Problems problems;
  const Result<YamlValue> root =
      ParseYaml("a: 1\nb:\n  c: 'two'\n  d: [x, {e: ~}]\n\nf:\n", "t", &problems);
  ASSERT_TRUE(root.ok()) << root.error().message;
  EXPECT_TRUE(problems.empty());
  EXPECT_EQ(root->Find("a")->line, 1);
  EXPECT_FALSE(root->Find("a")->quoted);
  const YamlValue* c = root->Find("b")->Find("c");
  EXPECT_EQ(c->line, 3);
  EXPECT_TRUE(c->quoted);
  EXPECT_EQ(root->Find("b")->Find("d")->items.size(), 2u);
  EXPECT_TRUE(root->Find("b")->Find("d")->items[1].Find("e")->is_null());
  EXPECT_TRUE(root->Find("f")->is_null());
  EXPECT_EQ(root->Find("f")->line, 6);
}

TEST(RunFileReader, ReportsDuplicateKeysWithBothLines) {
  Problems problems;
  const Result<YamlValue> root = ParseYaml("a: 1\nb: 2\na: 3\n", "t", &problems);
  ASSERT_TRUE(root.ok());
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_EQ(problems[0].line, 3);
  EXPECT_NE(problems[0].message.find("line 1"), std::string::npos) << problems[0].message;
  EXPECT_EQ(root->Find("a")->text, "1");
}

TEST(RunFileReader, SyntaxErrorsNameTheLine) {
  for (const char* text : {"a: [1, 2\nb: 3\n", "a: b: c\n", "a: *unknown\n", "\tb: 1\n",
                           "a: 1\n--- \nb: 2\n", "{a: 1, b\n"}) {
    Problems problems;
    const Result<YamlValue> root = ParseYaml(text, "run.yaml", &problems);
    ASSERT_FALSE(root.ok()) << text;
    EXPECT_EQ(root.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(root.error().message.find("run.yaml"), std::string::npos) << root.error().message;
  }
}

TEST(RunFileReader, WritesAliasesOut) {
  Problems problems;
  const Result<YamlValue> root = ParseYaml("a: &x {b: 1}\nc: *x\n", "t", &problems);
  ASSERT_TRUE(root.ok()) << root.error().message;
  EXPECT_EQ(root->Find("c")->Find("b")->text, "1");
}

TEST(RunFileReader, BoundsHostileInput) {
  std::string laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 12; ++i) {
    std::string list;
    for (int k = 0; k < 10; ++k) list += fmt::format("{}*a{}", k > 0 ? ", " : "", i - 1);
    laughs += fmt::format("a{}: &a{} [{}]\n", i, i, list);
  }
  const std::string deep = "a: " + std::string(5000, '[') + std::string(5000, ']');
  const std::string braces = std::string(20000, '{');
  const std::string dashes = [] {
    std::string text;
    for (int i = 0; i < 5000; ++i) text += "- ";
    return text;
  }();
  const std::string large(static_cast<size_t>(kMaxRunFileBytes) + 1, '#');
  std::string many = "a: [";
  for (int64_t i = 0; i < kMaxYamlNodes; ++i) many += "1,";
  many += "]";
  for (const std::string& text : {laughs, deep, braces, dashes, large, many}) {
    Problems problems;
    EXPECT_FALSE(ParseYaml(text, "t", &problems).ok()) << text.substr(0, 50);
  }
}

TEST(RunFileReader, SurvivesDamage) {
  const std::string good =
      "run_name: x\nmodel: {name: mpt, d: &a [1, 2]}\ndata:\n  sources:\n    a: 'p'\n    b: *a\n? "
      "k\n: v\n"
      "text: |\n  lines\n  more\n\"quoted \\u00e9\": !!str 5\n";
  // Every cut and every single changed byte: an error or a tree, never a crash.
  for (size_t cut = 0; cut <= good.size(); ++cut) {
    Problems problems;
    (void)ParseYaml(good.substr(0, cut), "t", &problems).ok();
  }
  int64_t readable = 0;
  for (size_t at = 0; at < good.size(); ++at) {
    for (const char c :
         {'\0', '\t', '\n', '{', '[', '"', '&', '*', ':', '-', '\x80', '\xff', '!', '%'}) {
      std::string damaged = good;
      damaged[at] = c;
      Problems problems;
      readable += ParseYaml(damaged, "t", &problems).ok() ? 1 : 0;
    }
  }
  EXPECT_GT(readable, 0);
}

TEST(RunFileReader, OverridesSetAndMakeKeys) {
  Problems problems;
  Result<YamlValue> root = ParseYaml("a: {b: 1}\n", "t", &problems);
  ASSERT_TRUE(root.ok());
  for (const char* text : {"a.b=2", "a.c.d=hello world", "p=docs/**/*.md", "q=*.md", "list=[1, x]",
                           "e=", "equation=x=y", "quoted='7'"}) {
    ApplyOverride(text, &*root, &problems);
  }
  EXPECT_TRUE(problems.empty());
  EXPECT_EQ(root->Find("a")->Find("b")->text, "2");
  EXPECT_EQ(root->Find("a")->Find("b")->override_text, "a.b=2");
  EXPECT_EQ(root->Find("a")->Find("c")->Find("d")->text, "hello world");
  EXPECT_EQ(root->Find("p")->text, "docs/**/*.md");
  EXPECT_EQ(root->Find("q")->text, "*.md");
  EXPECT_EQ(root->Find("list")->items.size(), 2u);
  EXPECT_TRUE(root->Find("e")->is_null());
  EXPECT_EQ(root->Find("equation")->text, "x=y");
  EXPECT_TRUE(root->Find("quoted")->quoted);
}

TEST(RunFileReader, BadOverridesAreReported) {
  Problems problems;
  Result<YamlValue> root = ParseYaml("a: 5\n", "t", &problems);
  ASSERT_TRUE(root.ok());
  for (const char* text : {"novalue", "=5", "a.b=1", "a..b=1", "c=[1, 2", ".=1"}) {
    const size_t before = problems.size();
    ApplyOverride(text, &*root, &problems);
    ASSERT_EQ(problems.size(), before + 1) << text;
    EXPECT_EQ(problems.back().override_text, text);
  }
}

}  // namespace
}  // namespace tessera
