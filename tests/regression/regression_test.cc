// Key kernels take no more instructions than the committed numbers say. The counts do not depend on
// the machine's speed or load. scripts/update_instructions.sh writes the file anew.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "base/cpu_info.h"
#include "base/files.h"
#include "instruction_counts.h"

namespace tessera {
namespace {

constexpr const char* kFile = TESSERA_SOURCE_DIR "/tests/regression/instructions.json";

TEST(InstructionCounts, FailWhenAnOpDoublesItsCost) {
  const InstructionCounts committed = {{"a", 1000}, {"b", 1000}, {"c", 1000}, {"d", 1000}};
  const Comparison comparison =
      CompareCounts({{"a", 2000}, {"b", 1290}, {"c", 690}, {"new", 5}}, committed);
  ASSERT_EQ(comparison.failures.size(), 2u);
  EXPECT_EQ(comparison.failures[0], "a: 2000 instructions, 2.00 times the committed 1000");
  EXPECT_NE(comparison.failures[1].find("new"), std::string::npos);
  ASSERT_EQ(comparison.notes.size(), 2u);
  EXPECT_NE(comparison.notes[0].find("c: 690"), std::string::npos);
  EXPECT_NE(comparison.notes[1].find("d: committed"), std::string::npos);
  EXPECT_TRUE(CompareCounts(committed, committed).failures.empty());
}

TEST(InstructionCounts, ReadCallgrindsOutputAndTheFile) {
  EXPECT_EQ(*ParseCollected("==1== Events    : Ir\n==1== Collected : 123456\n==1==\n"), 123456);
  EXPECT_FALSE(ParseCollected("==1== Collected : 0\n").ok());
  EXPECT_FALSE(ParseCollected("valgrind: failed to start").ok());
  const Json json = {{"gcc", {{"a", 5}}}, {"clang", {{"a", 0}}}};
  EXPECT_EQ(CountsFromJson(json, "gcc")->at("a"), 5);
  EXPECT_FALSE(CountsFromJson(json, "clang").ok());
  EXPECT_EQ(CountsFromJson(json, "other").error().code, ErrorCode::kNotFound);
}

TEST(InstructionCounts, StayNearTheCommittedOnes) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "valgrind cannot run programs with sanitizers";
#endif
  if (!HasValgrind()) GTEST_SKIP() << "valgrind is absent: scripts/packages.sh installs it";
  if (!ThisCpu().avx2) GTEST_SKIP() << "the counts are of the AVX2 kernels, which this processor lacks";
  const bool update = std::getenv("TESSERA_UPDATE_INSTRUCTIONS") != nullptr;
  Json file = {{"isa", "avx2"}};
  if (PathExists(kFile) || !update) {
    Result<Json> read = ReadJsonFile(kFile);
    ASSERT_TRUE(read.ok()) << read.error().message;
    file = std::move(read).value();
  }
  const Result<InstructionCounts> measured = CountAll(TESSERA_REGRESSION_CASES);
  ASSERT_TRUE(measured.ok()) << measured.error().message;
  if (update) {
    file[CompilerFamily()] = *measured;
    const Status written = WriteFileAtomic(kFile, JsonText(file, 2) + "\n");
    ASSERT_TRUE(written.ok()) << written.error().message;
    return;
  }
  const Result<InstructionCounts> committed = CountsFromJson(file, CompilerFamily());
  if (!committed.ok() && committed.error().code == ErrorCode::kNotFound) {
    GTEST_SKIP() << kFile << " has no counts of " << CompilerFamily();
  }
  ASSERT_TRUE(committed.ok()) << committed.error().message;
  const Comparison comparison = CompareCounts(*measured, *committed);
  for (const std::string& note : comparison.notes) {
    fmt::print("note: {}: scripts/update_instructions.sh keeps the gain\n", note);
  }
  for (const std::string& failure : comparison.failures) {
    ADD_FAILURE() << failure
                  << "; if that is meant, run scripts/update_instructions.sh and say why in the commit";
  }
}

}  // namespace
}  // namespace tessera
