#include "store/file_store.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "base/files.h"
#include "base/test_folder.h"
#include "store/atomic_file.h"

namespace tessera {
namespace {

std::unique_ptr<ObjectStore> Open(const TestFolder& folder) {
  return OpenFileStore(folder.path().string(), {});
}

std::vector<std::string> Keys(const ListPage& page) {
  std::vector<std::string> keys;
  for (const ObjectInfo& object : page.objects) keys.push_back(object.key);
  return keys;
}

// Every page of a listing, joined; folders end with '/'.
std::vector<std::string> ListAll(ObjectStore& store, ListOptions options) {
  std::vector<std::string> keys;
  do {
    Result<ListPage> page = store.List(options);
    EXPECT_TRUE(page.ok());
    if (!page.ok()) break;
    for (const ObjectInfo& object : page->objects) keys.push_back(object.key);
    keys.insert(keys.end(), page->folders.begin(), page->folders.end());
    options.page = page->next_page;
  } while (!options.page.empty());
  return keys;
}

TEST(FileStoreTest, PutsReadsAndRemoves) {
  const TestFolder folder;
  const auto store = Open(folder);
  const auto put = store->Put("a/b/object", "0123456789");
  ASSERT_TRUE(put.ok()) << put.error().ToString();
  EXPECT_EQ(put->bytes, 10);
  const auto head = store->Head("a/b/object");
  ASSERT_TRUE(head.ok());
  EXPECT_EQ(head->bytes, 10);
  EXPECT_EQ(head->etag, put->etag);
  EXPECT_EQ(*store->Get("a/b/object"), "0123456789");
  std::string range(4, ' ');
  ASSERT_TRUE(store->GetRange("a/b/object", 3, std::as_writable_bytes(std::span(range))).ok());
  EXPECT_EQ(range, "3456");
  ASSERT_TRUE(store->Remove("a/b/object").ok());
  EXPECT_TRUE(store->Remove("a/b/object").ok());
  EXPECT_EQ(store->Head("a/b/object").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(store->Get("a/b/object").error().code, ErrorCode::kNotFound);
}

TEST(FileStoreTest, RefusesWhatIsNoKey) {
  const TestFolder folder;
  const auto store = Open(folder);
  for (const std::string_view key :
       {"", "/etc/passwd", "a/../../b", "..", "a//b", "a/", ".", ".tessera-tmp-1"}) {
    EXPECT_EQ(store->Put(key, "x").error().code, ErrorCode::kInvalidArgument) << key;
    EXPECT_EQ(store->Head(key).error().code, ErrorCode::kInvalidArgument) << key;
  }
}

TEST(FileStoreTest, ReadingBehindTheEndNamesThePlace) {
  const TestFolder folder;
  const auto store = Open(folder);
  ASSERT_TRUE(store->Put("short", "01234").ok());
  std::string range(4, ' ');
  const Status status = store->GetRange("short", 3, std::as_writable_bytes(std::span(range)));
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kCorrupt);
  EXPECT_NE(status.error().message.find("ends at byte 5"), std::string::npos);
}

TEST(FileStoreTest, RefusesLargeObjectsBeforeReading) {
  const TestFolder folder;
  const auto store = Open(folder);
  ASSERT_TRUE(store->Put("object", "0123456789").ok());
  EXPECT_EQ(store->Get("object", 9).error().code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(store->Get("object", 10).ok());
}

TEST(FileStoreTest, ARangeOfAnotherVersionIsRefused) {
  const TestFolder folder;
  const auto store = Open(folder);
  const auto first = store->Put("object", "first");
  ASSERT_TRUE(store->Put("object", "other").ok());
  std::string range(5, ' ');
  const Status status =
      store->GetRange("object", 0, std::as_writable_bytes(std::span(range)), first->etag);
  ASSERT_FALSE(status.ok());
  EXPECT_TRUE(status.error().retryable);
}

TEST(FileStoreTest, ListsInTheOrderOfWholeKeys) {
  const TestFolder folder;
  const auto store = Open(folder);
  // '-' < '.' < '/' < '0': a folder's keys stand where "name/" sorts.
  const std::vector<std::string> keys = {"a-b", "a.txt", "a/1", "a/2/x", "a/2/y", "a0", "b/1"};
  for (const std::string& key : keys) ASSERT_TRUE(store->Put(key, key).ok());
  folder.Write(".tessera-tmp-0123", "left by a killed process");
  for (const int64_t max_keys : {1, 2, 3, 1000}) {
    ListOptions options;
    options.max_keys = max_keys;
    EXPECT_EQ(ListAll(*store, options), keys);
    options.prefix = "a/";
    EXPECT_EQ(ListAll(*store, options), (std::vector<std::string>{"a/1", "a/2/x", "a/2/y"}));
    options.prefix = "a/2";
    EXPECT_EQ(ListAll(*store, options), (std::vector<std::string>{"a/2/x", "a/2/y"}));
    options.prefix = "nothing/here";
    EXPECT_TRUE(ListAll(*store, options).empty());
  }
  ListOptions options;
  options.one_level = true;
  auto page = store->List(options);
  ASSERT_TRUE(page.ok());
  EXPECT_EQ(Keys(*page), (std::vector<std::string>{"a-b", "a.txt", "a0"}));
  EXPECT_EQ(page->folders, (std::vector<std::string>{"a/", "b/"}));
  options.prefix = "a/";
  options.max_keys = 1;
  EXPECT_EQ(ListAll(*store, options), (std::vector<std::string>{"a/1", "a/2/"}));
}

TEST(FileStoreTest, AMissingFolderIsAnError) {
  const TestFolder folder;
  const auto store = OpenFileStore((folder / "missing").string(), {});
  EXPECT_EQ(store->List({}).error().code, ErrorCode::kNotFound);
}

TEST(FileStoreTest, OneOfManyCreatorsWins) {
  const TestFolder folder;
  const auto store = Open(folder);
  std::atomic<int> winners{0};
  std::atomic<int> losers{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      const auto put = store->Put("lease", std::to_string(i), {.if_absent = true, .if_match = {}, .content_type = {}});
      if (put.ok()) {
        ++winners;
      } else if (put.error().code == ErrorCode::kExists) {
        ++losers;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(winners, 1);
  EXPECT_EQ(losers, 7);
}

TEST(FileStoreTest, CompareAndSwapLosesNoIncrement) {
  const TestFolder folder;
  const auto store = Open(folder);
  ASSERT_TRUE(store->Put("counter", "0").ok());
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int done = 0; done < 20;) {
        const auto head = store->Head("counter");
        if (!head.ok()) return;
        std::string text(static_cast<size_t>(head->bytes), ' ');
        if (!store->GetRange("counter", 0, std::as_writable_bytes(std::span(text)), head->etag).ok()) {
          continue;
        }
        PutOptions options;
        options.if_match = head->etag;
        if (store->Put("counter", std::to_string(std::stoi(text) + 1), options).ok()) ++done;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(*store->Get("counter"), "80");
}

TEST(FileStoreTest, AnAbandonedWriteLeavesNothing) {
  const TestFolder folder;
  const auto store = Open(folder);
  {
    auto writer = store->StartWrite("object", {});
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE((*writer)->Write("half of").ok());
    EXPECT_FALSE(PathExists(folder / "object"));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  auto writer = store->StartWrite("object", {});
  ASSERT_TRUE((*writer)->Write("one ").ok());
  ASSERT_TRUE((*writer)->Write("two").ok());
  ASSERT_TRUE((*writer)->Finish().ok());
  EXPECT_EQ(*store->Get("object"), "one two");
}

TEST(FileStoreTest, DownloadsAndUploadsFiles) {
  const TestFolder folder;
  const auto store = Open(folder);
  const std::string content(5'000'000, 'z');
  const std::filesystem::path file = folder.Write("local/in", content);
  int64_t moved = 0;
  const auto up = store->Upload(file.string(), "up/object", {}, [&](int64_t bytes) { moved += bytes; });
  ASSERT_TRUE(up.ok()) << up.error().ToString();
  EXPECT_EQ(moved, 5'000'000);
  ASSERT_TRUE(store->Download("up/object", (folder / "local/out").string()).ok());
  EXPECT_EQ(*ReadFile(folder / "local/out"), content);
  EXPECT_EQ(store->Download("missing", (folder / "local/no").string()).error().code,
            ErrorCode::kNotFound);
  EXPECT_FALSE(PathExists(folder / "local/no"));
}

TEST(FileBatchTest, FilesAppearTogetherAndWhole) {
  const TestFolder folder;
  const auto names = [&] {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder.path())) {
      if (entry.is_regular_file()) found.push_back(entry.path().filename().string());
    }
    return found;
  };
  const auto add = [&](FileBatch& batch, const std::string& name, int64_t counted) {
    const std::filesystem::path path = folder.Write("sub/placeholder", "").parent_path() / name;
    std::filesystem::remove(folder / "sub/placeholder");
    auto file = AtomicFile::Create(path.string());
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE(file->WriteAt(0, std::as_bytes(std::span(name))).ok());
    ASSERT_TRUE(batch.Add(*std::move(file), counted).ok());
  };
  {
    FileBatch dropped;
    add(dropped, "never", 5);
  }
  EXPECT_TRUE(names().empty());
  FileBatch batch;
  for (int i = 0; i < 70; ++i) add(batch, "f" + std::to_string(i), 1);
  // 64 came together and were committed; the others have only their temporary names.
  int64_t named = 0;
  for (const std::string& name : names()) named += name.starts_with("f");
  EXPECT_EQ(named, 64);
  ASSERT_TRUE(batch.Commit().ok());
  EXPECT_EQ(names().size(), 70u);
  for (int i = 0; i < 70; ++i) {
    EXPECT_EQ(*ReadFile(folder / ("sub/f" + std::to_string(i))), "f" + std::to_string(i));
  }
  ASSERT_TRUE(batch.Commit().ok());
  add(batch, "large", int64_t{1} << 30);  // So many bytes are not left waiting.
  EXPECT_TRUE(PathExists(folder / "sub/large"));
}

TEST(OpenObjectStoreTest, ShowsUrlsWithoutCredentials) {
  EXPECT_EQ(WithoutCredentials("s3://bucket/a"), "s3://bucket/a");
  EXPECT_EQ(WithoutCredentials("/path/x"), "/path/x");
  EXPECT_EQ(WithoutCredentials("http://host:80/a/b"), "http://host:80/a/b");
  EXPECT_EQ(WithoutCredentials("https://user:p@ss@host/a@b?sig=x#y"), "https://host/a@b");
  EXPECT_EQ(WithoutCredentials("x={remote: \"http://u:p@h/a?s=1\", b: https://v@i} http://j?q"),
            "x={remote: \"http://h/a\", b: https://i} http://j");
  EXPECT_EQ(WithoutCredentials("[http://u:a,b)c@h/d, http://v:w@i:80]"), "[http://h/d, http://i:80]");
}

TEST(OpenObjectStoreTest, KnowsPathsAndRefusesTheRest) {
  const TestFolder folder;
  folder.Write("x/y", "content");
  auto store = OpenObjectStore("file://" + folder.path().string() + "/x/");
  ASSERT_TRUE(store.ok());
  EXPECT_EQ(*(*store)->Get("y"), "content");
  auto location = OpenObjectLocation(folder.path().string() + "/x/y");
  ASSERT_TRUE(location.ok());
  EXPECT_EQ(location->key, "y");
  EXPECT_EQ(*location->store->Get("y"), "content");
  EXPECT_EQ(OpenObjectStore("ftp://host/x").error().code, ErrorCode::kUnsupported);
  EXPECT_EQ(OpenObjectStore("").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(OpenObjectStore("file://relative").error().code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(IsRemoteUrl("s3://bucket"));
  EXPECT_FALSE(IsRemoteUrl("/path"));
  EXPECT_FALSE(IsRemoteUrl("file:///path"));
}

}  // namespace
}  // namespace tessera
