#include "data/document_reader.h"

#include <gtest/gtest.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include "data/test_util.h"

namespace tessera {
namespace {

std::string Gzip(std::string_view text) {
  z_stream state = {};
  EXPECT_EQ(deflateInit2(&state, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(deflateBound(&state, text.size()) + 64, '\0');
  state.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  state.avail_in = static_cast<uInt>(text.size());
  state.next_out = reinterpret_cast<Bytef*>(out.data());
  state.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&state, Z_FINISH), Z_STREAM_END);
  out.resize(state.total_out);
  deflateEnd(&state);
  return out;
}

std::string Zstd(std::string_view text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

std::string Xz(std::string_view text) {
  std::string out(lzma_stream_buffer_bound(text.size()), '\0');
  size_t size = 0;
  EXPECT_EQ(lzma_easy_buffer_encode(6, LZMA_CHECK_CRC64, nullptr,
                                    reinterpret_cast<const uint8_t*>(text.data()), text.size(),
                                    reinterpret_cast<uint8_t*>(out.data()), &size, out.size()),
            LZMA_OK);
  out.resize(size);
  return out;
}

SourceConfig Source(const std::filesystem::path& path) {
  SourceConfig source;
  source.name = "s";
  source.paths = {path.string()};
  return source;
}

// Documents of a source, or the first error.
Result<std::vector<Document>> ReadDocuments(const SourceConfig& source,
                                            int64_t max_bytes = 1 << 20) {
  TESSERA_ASSIGN(const SourceListing listing, ListSource(source));
  RecordReader reader(listing, 0, max_bytes);
  std::vector<Document> out;
  while (true) {
    RawRecord record;
    TESSERA_ASSIGN(const bool found, reader.Next(&record));
    if (!found) return out;
    const SourceFile& file = listing.files[static_cast<size_t>(record.file)];
    TESSERA_ASSIGN(Document document, ParseRecord(std::move(record), source, file));
    out.push_back(std::move(document));
  }
}

TEST(InputStream, LooksThroughEveryCompression) {
  std::string text;
  for (int i = 0; i < 100000; ++i) text += std::to_string(i * 7919) + "\n";
  for (const auto& compress : {Gzip, Zstd, Xz}) {
    const std::string once = compress(text);
    // Two members behind each other are one text.
    for (const std::string& stored : {once, once + once}) {
      Result<std::unique_ptr<InputStream>> stream = InputStream::OpenMemory(stored, "memory");
      ASSERT_TRUE(stream.ok());
      const Result<std::string> all = ReadAll(**stream, 1 << 30, "memory");
      ASSERT_TRUE(all.ok()) << all.error().message;
      EXPECT_EQ(*all, stored.size() == once.size() ? text : text + text);
    }
  }
}

TEST(InputStream, TruncatedAndDamagedDataAreErrors) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += std::to_string(i * 7919);
  for (const auto& compress : {Gzip, Zstd, Xz}) {
    const std::string good = compress(text);
    for (const size_t keep : {size_t{10}, good.size() / 2, good.size() - 1}) {
      Result<std::unique_ptr<InputStream>> stream =
          InputStream::OpenMemory(std::string_view(good).substr(0, keep), "cut");
      ASSERT_TRUE(stream.ok());
      const Result<std::string> all = ReadAll(**stream, 1 << 30, "cut");
      ASSERT_FALSE(all.ok()) << keep;
      EXPECT_NE(all.error().message.find("cut"), std::string::npos);
    }
  }
  std::string bad = Gzip(text);
  bad[bad.size() / 2] = static_cast<char>(bad[bad.size() / 2] ^ 0x55);
  Result<std::unique_ptr<InputStream>> stream = InputStream::OpenMemory(bad, "bad");
  EXPECT_FALSE(ReadAll(**stream, 1 << 30, "bad").ok());
}

TEST(RecordReader, BombStopsAtTheLimit) {
  const TempFolder folder;
  const std::string zeros(50 << 20, '\0');
  folder.Write("bomb.txt.zst", Zstd(zeros));
  const auto documents = ReadDocuments(Source(folder.path() / "bomb.txt.zst"));
  ASSERT_FALSE(documents.ok());
  EXPECT_NE(documents.error().message.find("1.0 MiB"), std::string::npos)
      << documents.error().message;
  folder.Write("line.jsonl.gz", Gzip(zeros));
  EXPECT_FALSE(ReadDocuments(Source(folder.path() / "line.jsonl.gz")).ok());
}

TEST(RecordReader, ReadsAFolderInOrder) {
  const TempFolder folder;
  folder.Write("in/b.md", "bee");
  folder.Write("in/a.txt", "ay \xff\xfe");
  folder.Write("in/sub/c.rst.gz", Gzip("sea"));
  folder.Write("in/d.pod.xz", Xz("dee"));
  folder.Write("in/e.txt", Zstd("by content, whatever the name"));
  folder.Write("in/image.png", "no text");
  folder.Write("in/.git/config.txt", "hidden");
  const SourceConfig source = Source(folder.path() / "in");
  const auto documents = ReadDocuments(source);
  ASSERT_TRUE(documents.ok()) << documents.error().message;
  std::vector<std::pair<std::string, std::string>> found;
  for (const Document& each : *documents) found.emplace_back(each.identity, each.text);
  EXPECT_EQ(found, (std::vector<std::pair<std::string, std::string>>{
                       {"a.txt", "ay \xff\xfe"},
                       {"b.md", "bee"},
                       {"d.pod.xz", "dee"},
                       {"e.txt", "by content, whatever the name"},
                       {"sub/c.rst.gz", "sea"}}));
  EXPECT_EQ(ListSource(source)->skipped_extensions.at(".png"), 1);
}

TEST(RecordReader, ReadsJsonLines) {
  const TempFolder folder;
  folder.Write("x.jsonl",
               "{\"text\": \"one\\u00e9\"}\n"
               "\n"
               "{\"id\": \"k\", \"text\": \"two\", \"more\": {\"text\": 3}}\r\n"
               "{\"text\": \"br\xffoken \xc3\", \"id\": 7}\n"
               "{\"text\": \"no newline\"}");
  const auto documents = ReadDocuments(Source(folder.path() / "x.jsonl"));
  ASSERT_TRUE(documents.ok()) << documents.error().message;
  ASSERT_EQ(documents->size(), 4u);
  EXPECT_EQ((*documents)[0].identity, "x.jsonl#1");
  EXPECT_EQ((*documents)[0].text, "one\xc3\xa9");
  EXPECT_EQ((*documents)[1].identity, "x.jsonl#k");
  EXPECT_EQ((*documents)[2].identity, "x.jsonl#7");
  EXPECT_EQ((*documents)[2].text, "br\xffoken \xc3");
  EXPECT_EQ((*documents)[3].text, "no newline");
  EXPECT_EQ((*documents)[3].identity, "x.jsonl#5");
}

TEST(RecordReader, BadJsonNamesFileAndLine) {
  const TempFolder folder;
  for (const char* bad : {"{\"text\": ", "{\"body\": \"x\"}", "{\"text\": 5}", "[1]", "null"}) {
    folder.Write("x.jsonl", std::string("{\"text\": \"fine\"}\n") + bad + "\n");
    const auto documents = ReadDocuments(Source(folder.path() / "x.jsonl"));
    ASSERT_FALSE(documents.ok()) << bad;
    EXPECT_NE(documents.error().message.find("x.jsonl' line 2"), std::string::npos)
        << documents.error().message;
  }
}

TEST(ListSource, UnknownExtensions) {
  const TempFolder folder;
  folder.Write("only/a.bin", "x");
  const auto folder_listing = ListSource(Source(folder.path() / "only"));
  ASSERT_FALSE(folder_listing.ok());
  EXPECT_NE(folder_listing.error().message.find("jsonl"), std::string::npos);
  EXPECT_NE(folder_listing.error().message.find(".bin (1)"), std::string::npos);
  EXPECT_FALSE(ListSource(Source(folder.path() / "only/*.bin")).ok());
  EXPECT_TRUE(ListSource(Source(folder.path() / "only/a.bin")).ok());  // Named itself: text.
  SourceConfig text = Source(folder.path() / "only");
  text.format = SourceFormat::kText;
  EXPECT_EQ(ListSource(text)->files.size(), 1u);
  EXPECT_FALSE(ListSource(Source(folder.path() / "missing")).ok());
}

TEST(ListSource, IdentitiesAreUniqueAndFilesComeOnce) {
  const TempFolder folder;
  folder.Write("a/x.txt", "1");
  folder.Write("b/x.txt", "2");
  SourceConfig source = Source(folder.path() / "a");
  source.paths.push_back((folder.path() / "b").string());
  source.paths.push_back((folder.path() / "a/*.txt").string());
  const Result<SourceListing> listing = ListSource(source);
  ASSERT_TRUE(listing.ok()) << listing.error().message;
  ASSERT_EQ(listing->files.size(), 2u);
  EXPECT_EQ(listing->files[0].identity, "x.txt");
  EXPECT_EQ(listing->files[1].identity, "1:x.txt");
}

// The split is a contract: a document that was held out must stay so.
TEST(Split, KeepsItsValues) {
  std::string held_out;
  for (int i = 0; i < 200; ++i) {
    if (InValidation("doc" + std::to_string(i), 1.0 / 40, 0)) held_out += std::to_string(i) + " ";
  }
  EXPECT_EQ(held_out, "0 14 23 80 ");
}

TEST(Split, HoldsOutTheFraction) {
  int64_t count = 0;
  for (int i = 0; i < 100000; ++i) {
    count += InValidation("path/to/" + std::to_string(i) + ".txt", 1.0 / 40, 3);
  }
  // Binomial(100000, 1/40): mean 2500, standard deviation 49.4; six of them.
  EXPECT_NEAR(static_cast<double>(count), 2500.0, 297.0);
  EXPECT_FALSE(InValidation("a", 0.0, 0));
}

TEST(Split, CopiesFollowTheWeight) {
  for (const double weight : {0.25, 1.0, 2.5}) {
    int64_t sum = 0;
    for (int i = 0; i < 10000; ++i) {
      const int64_t copies = CopiesOf("d" + std::to_string(i), weight);
      EXPECT_GE(copies, static_cast<int64_t>(weight));
      EXPECT_LE(copies, static_cast<int64_t>(weight) + 1);
      sum += copies;
    }
    // Standard deviation at most sqrt(10000)/2 = 50; six of them.
    EXPECT_NEAR(static_cast<double>(sum), 10000 * weight, 300.0);
  }
  EXPECT_EQ(CopiesOf("x", 3.0), 3);
}

}  // namespace
}  // namespace tessera
