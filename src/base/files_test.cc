#include "base/files.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <string>
#include <sys/resource.h>
#include <vector>

#include "base/test_folder.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> NamesBelow(const fs::path& root) {
  std::vector<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    names.push_back(fs::relative(entry.path(), root).string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// The matches of `pattern` below the folder, relative to it.
std::vector<std::string> Expand(const TestFolder& folder, const std::string& pattern) {
  const auto files = ExpandFiles((folder / pattern).string());
  std::vector<std::string> names;
  if (!files.ok()) return {"error: " + std::string(ErrorCodeName(files.error().code))};
  for (const std::string& file : *files) {
    names.push_back(fs::relative(file, folder.path()).string());
  }
  return names;
}

TEST(FilesTest, AtomicWriteReplacesAndLeavesNothingElse) {
  const TestFolder folder;
  const fs::path file = folder / "a.txt";
  ASSERT_TRUE(WriteFileAtomic(file, "one").ok());
  ASSERT_TRUE(WriteFileAtomic(file, std::string("t\0wo", 4)).ok());
  EXPECT_EQ(ReadFile(file).value(), std::string("t\0wo", 4));
  EXPECT_EQ(NamesBelow(folder.path()), std::vector<std::string>{"a.txt"});
}

// The limit on a file's size stands for a full disk: write(2) fails in the middle.
TEST(FilesTest, FailedWriteKeepsTheOldFileAndRemovesTheTemporary) {
  const TestFolder folder;
  const fs::path file = folder / "a.txt";
  ASSERT_TRUE(WriteFileAtomic(file, "old").ok());
  struct rlimit former = {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &former), 0);
  struct rlimit small = former;
  small.rlim_cur = 1 << 16;
  auto* const former_handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const Status status = WriteFileAtomic(file, std::string(1 << 20, 'x'));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &former), 0);
  std::signal(SIGXFSZ, former_handler);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kIo);
  EXPECT_NE(status.error().message.find("a.txt"), std::string::npos) << status.error().message;
  EXPECT_EQ(ReadFile(file).value(), "old");
  EXPECT_EQ(NamesBelow(folder.path()), std::vector<std::string>{"a.txt"});
}

TEST(FilesTest, ErrorsNameThePathAndTheirKind) {
  const TestFolder folder;
  const auto missing = ReadFile(folder / "missing");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  EXPECT_NE(missing.error().message.find("missing"), std::string::npos);
  const auto directory = ReadFile(folder.path());
  ASSERT_FALSE(directory.ok());
  EXPECT_EQ(directory.error().code, ErrorCode::kIo);
  EXPECT_FALSE(WriteFileAtomic(folder / "no/such/folder/a", "x").ok());
}

TEST(FilesTest, ReadRefusesMoreThanItsLimit) {
  const TestFolder folder;
  const fs::path file = folder.Write("a", "12345");
  EXPECT_EQ(ReadFile(file, 5).value(), "12345");
  const auto refused = ReadFile(file, 4);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
}

TEST(FilesTest, ReadsFilesWhoseSizeIsNotKnown) {
  // Files of /proc say that they have no bytes.
  EXPECT_FALSE(ReadFile("/proc/self/status").value().empty());
}

TEST(FilesTest, WriterCountsAppendsAndTruncates) {
  const TestFolder folder;
  const fs::path file = folder / "log";
  {
    auto writer = FileWriter::Create(file);
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE(writer->Write("abc").ok());
    FileWriter moved = std::move(writer).value();
    ASSERT_TRUE(moved.Write("de").ok());
    EXPECT_EQ(moved.bytes_written(), 5);
    ASSERT_TRUE(moved.Sync().ok());
    ASSERT_TRUE(moved.Close().ok());
  }
  ASSERT_TRUE(FileWriter::Append(file).value().Write("fg").ok());
  EXPECT_EQ(ReadFile(file).value(), "abcdefg");
  { auto truncated = FileWriter::Create(file); }
  EXPECT_EQ(FileBytes(file).value(), 0);
}

TEST(FilesTest, MapsWhatTheFileHolds) {
  const TestFolder folder;
  const std::string content(10000, 'q');
  auto map = MappedFile::Open(folder.Write("a", content));
  ASSERT_TRUE(map.ok());
  const MappedFile moved = std::move(map).value();
  ASSERT_EQ(moved.size(), 10000);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(moved.data()), 10000), content);
  const auto empty = MappedFile::Open(folder.Write("b", ""));
  ASSERT_TRUE(empty.ok());
  EXPECT_EQ(empty->size(), 0);
  EXPECT_TRUE(empty->bytes().empty());
  EXPECT_EQ(MappedFile::Open(folder / "none").error().code, ErrorCode::kNotFound);
}

TEST(ExpandFilesTest, PatternsMatchByComponentAndAcrossFolders) {
  const TestFolder folder;
  for (const char* name : {"a.txt", "b.rst", "d/c.txt", "d/e/f.txt", "d/.hidden.txt", "x[1].txt"}) {
    folder.Write(name, "x");
  }
  using Names = std::vector<std::string>;
  EXPECT_EQ(Expand(folder, "a.txt"), Names{"a.txt"});
  EXPECT_EQ(Expand(folder, "*.txt"), (Names{"a.txt", "x[1].txt"}));
  EXPECT_EQ(Expand(folder, "?.rst"), Names{"b.rst"});
  EXPECT_EQ(Expand(folder, "[a-b].*"), (Names{"a.txt", "b.rst"}));
  EXPECT_EQ(Expand(folder, "d/*.txt"), Names{"d/c.txt"});
  EXPECT_EQ(Expand(folder, "**/*.txt"), (Names{"a.txt", "d/c.txt", "d/e/f.txt", "x[1].txt"}));
  EXPECT_EQ(Expand(folder, "**/f.txt"), Names{"d/e/f.txt"});
  // A name that exists is itself, even where it could be a pattern.
  EXPECT_EQ(Expand(folder, "x[1].txt"), Names{"x[1].txt"});
  EXPECT_EQ(Expand(folder, "d"), (Names{"d/.hidden.txt", "d/c.txt", "d/e/f.txt"}));
  EXPECT_EQ(Expand(folder, "*.none"), Names{"error: not_found"});
  EXPECT_EQ(Expand(folder, "none"), Names{"error: not_found"});
}

// Runs `test` in a child that has no more rights than a stranger; its result is the child's exit code.
template <class Test>
int WithoutRights(Test test) {
  const pid_t child = ::fork();
  if (child == 0) {
    constexpr uid_t kNobody = 65534;
    if (::geteuid() == 0 && (::setgid(kNobody) != 0 || ::setuid(kNobody) != 0)) ::_exit(99);
    ::_exit(test());
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 98;
}

TEST(ExpandFilesTest, UnreadableFolderIsNamedAndNotLeftOut) {
  const TestFolder folder;
  folder.Write("open/a.txt", "x");
  folder.Write("open/locked/b.txt", "x");
  folder.Write("open/lost+found/c.txt", "x");
  fs::permissions(folder / "open/lost+found", fs::perms::none);
  const auto expand = [&](const std::string& pattern, const std::string& named) {
    const auto files = ExpandFiles((folder / pattern).string());
    if (files.ok()) return 1;
    if (files.error().code != ErrorCode::kIo) return 2;
    const std::string& message = files.error().message;
    if (message.find((folder / named).string()) == std::string::npos) return 3;
    return message.find("Permission denied") == std::string::npos ? 4 : 0;
  };
  // Only the folder for repairs of a file system may be left out.
  EXPECT_EQ(WithoutRights([&] { return ExpandFiles((folder / "open").string()).ok() ? 0 : 1; }), 0);
  fs::permissions(folder / "open/locked", fs::perms::none);
  for (const char* pattern : {"open", "open/**", "open/**/*.txt", "open/*/*.txt", "open/locked/*.txt"}) {
    EXPECT_EQ(WithoutRights([&] { return expand(pattern, "open/locked"); }), 0) << pattern;
  }
  EXPECT_EQ(WithoutRights([&] { return expand("open/locked/b.txt", "open/locked/b.txt"); }), 0);
  EXPECT_EQ(WithoutRights([&] { return expand("open/*/b.txt", "open/locked/b.txt"); }), 0);
  fs::permissions(folder / "open/locked", fs::perms::owner_all);
  fs::permissions(folder / "open/lost+found", fs::perms::owner_all);
}

TEST(ExpandFilesTest, TellsWhyNothingWasFound) {
  const TestFolder folder;
  fs::create_directories(folder / "none");
  const auto message = [&](const std::string& pattern) {
    return ExpandFiles((folder / pattern).string()).error().message;
  };
  EXPECT_NE(message("none").find("is empty"), std::string::npos) << message("none");
  EXPECT_NE(message("nowhere").find("does not exist"), std::string::npos) << message("nowhere");
  EXPECT_NE(message("*.md").find("no file matches"), std::string::npos) << message("*.md");
}

TEST(FilesTest, FreeSpaceOfAFolderThatDoesNotExistYet) {
  const TestFolder folder;
  EXPECT_GT(FreeDiskBytes(folder / "not/yet/there").value(), 0);
}

TEST(FilesTest, RemoveTreeTakesAllAndForgivesAbsence) {
  const TestFolder folder;
  folder.Write("d/e/f", "x");
  EXPECT_TRUE(RemoveTree(folder / "d").ok());
  EXPECT_FALSE(PathExists(folder / "d"));
  EXPECT_TRUE(RemoveTree(folder / "d").ok());
}

}  // namespace
}  // namespace tessera
