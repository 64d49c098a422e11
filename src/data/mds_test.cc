#include "data/mds.h"

#include <gtest/gtest.h>

#include <cstring>

#include "data/document_table.h"
#include "data/mds_reader.h"
#include "data/mds_writer.h"
#include "data/test_util.h"

namespace tessera {
namespace {

std::string WriteSmall(const std::filesystem::path& folder, int samples = 3,
                       int64_t size_limit = 1 << 20) {
  Result<MdsWriter> writer = MdsWriter::Create(
      {.folder = folder, .columns = {{"tokens", "ndarray:uint16"}, {"id", "int"}, {"a", "str"}},
       .size_limit = size_limit});
  EXPECT_TRUE(writer.ok());
  for (int i = 0; i < samples; ++i) {
    std::string number, tokens;
    AppendMdsInt(i, &number);
    const std::vector<int32_t> ids(static_cast<size_t>(i + 1), i);
    AppendMdsTokens(ids, 2, &tokens);
    const std::string_view values[] = {"text", number, tokens};
    EXPECT_TRUE(writer->Write(values).ok());
  }
  EXPECT_TRUE(writer->Finish().ok());
  return *ReadFile(folder / "index.json");
}

TEST(Mds, BytesAreAsTheFormatSays) {
  const TempFolder folder;
  WriteSmall(folder.path(), 1);
  const std::string shard = *ReadFile(folder.path() / "shard.00000.mds");
  const std::string config =
      R"({"column_encodings": ["str", "int", "ndarray:uint16"], "column_names": ["a", "id", "tokens"], )"
      R"("column_sizes": [null, 8, null], "compression": null, "format": "mds", )"
      R"("hashes": ["sha256", "xxh64"], "size_limit": 1048576, "version": 2})";
  std::string wanted;
  const auto u32 = [&](uint32_t value) { wanted.append(reinterpret_cast<char*>(&value), 4); };
  const uint32_t first = static_cast<uint32_t>(12 + config.size());
  u32(1);
  u32(first);
  u32(first + 8 + 4 + 8 + 4);
  wanted += config;
  u32(4);  // len("text")
  u32(4);  // shape byte, dimension, one uint16
  wanted += "text";
  wanted += std::string(8, '\0');
  wanted += std::string("\x04\x01\x00\x00", 4);
  EXPECT_EQ(shard, wanted);
}

TEST(Mds, ReadsBackWhatItWrote) {
  const TempFolder folder;
  WriteSmall(folder.path(), 500, 4096);
  Result<MdsReader> reader = MdsReader::Open(folder.path());
  ASSERT_TRUE(reader.ok());
  EXPECT_GT(reader->index().shards.size(), 10u);
  ASSERT_EQ(reader->samples(), 500);
  std::vector<std::string_view> columns;
  for (const int64_t i : {0, 499, 250, 1, 498}) {
    ASSERT_TRUE(reader->Columns(i, &columns).ok());
    EXPECT_EQ(columns[0], "text");
    EXPECT_EQ(MdsValueToJson("int", columns[1])->get<int64_t>(), i);
    const MdsTokens tokens = *ParseMdsTokens("ndarray:uint16", columns[2]);
    ASSERT_EQ(tokens.count, i + 1);
    std::vector<int32_t> ids(static_cast<size_t>(tokens.count));
    EXPECT_EQ(CopyMdsTokens(tokens, 0, tokens.count, ids.data()), i);
    EXPECT_EQ(ids, std::vector<int32_t>(static_cast<size_t>(i + 1), static_cast<int32_t>(i)));
  }
  for (const MdsShard& shard : reader->index().shards) EXPECT_LE(shard.raw.bytes, 4096);
  const Result<MdsVerifyReport> report = VerifyMds(folder.path(), {.vocab_size = 500});
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->problem_count, 0) << report->problems[0];
  EXPECT_EQ(report->tokens, 500 * 501 / 2);
}

TEST(Mds, OversizedFirstSampleGetsItsOwnShard) {
  const TempFolder folder;
  WriteSmall(folder.path(), 3, 10);
  const Result<MdsIndex> index = ReadMdsIndex(folder.path());
  ASSERT_TRUE(index.ok());
  ASSERT_EQ(index->shards.size(), 3u);
  for (const MdsShard& shard : index->shards) EXPECT_EQ(shard.samples, 1);
}

TEST(Mds, ToleratesShardsWithoutSamples) {
  const TempFolder folder;
  std::string index = WriteSmall(folder.path(), 2);
  Json json = *ParseJson(index, "index");
  Json empty = json["shards"][0];
  empty["samples"] = 0;
  empty["raw_data"]["basename"] = "empty.mds";
  empty["raw_data"]["bytes"] = 8;
  empty["raw_data"]["hashes"] = Json::object();
  json["shards"].insert(json["shards"].begin(), empty);
  folder.Write("index.json", json.dump());
  folder.Write("empty.mds", std::string("\0\0\0\0\x08\0\0\0", 8));
  Result<MdsReader> reader = MdsReader::Open(folder.path());
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ(reader->samples(), 2);
  EXPECT_EQ(reader->Sample(0)->substr(8, 4), "text");
  EXPECT_EQ(VerifyMds(folder.path(), {})->problem_count, 0);
}

TEST(Mds, WideShapesAndTypes) {
  std::string value;
  AppendMdsTokens(std::vector<int32_t>(300, 70000), 4, &value);
  EXPECT_EQ(value.substr(0, 3), std::string("\x05\x2c\x01", 3));
  const MdsTokens tokens = *ParseMdsTokens("ndarray:uint32", value);
  EXPECT_EQ(tokens.count, 300);
  std::vector<int32_t> ids(300);
  EXPECT_EQ(CopyMdsTokens(tokens, 0, 300, ids.data()), 70000);
  // Type code 33 (int32), two dimensions of u8.
  const std::string typed("\x21\x08\x02\x01\x07\0\0\0\xff\xff\xff\xff", 12);
  const MdsTokens two = *ParseMdsTokens("ndarray", typed);
  EXPECT_EQ(two.count, 2);
  EXPECT_EQ(CopyMdsTokens(two, 0, 1, ids.data()), 7);
  EXPECT_EQ(CopyMdsTokens(two, 0, 2, ids.data()), -1);  // An id of -1.
  EXPECT_FALSE(ParseMdsTokens("ndarray:float32:1", "\0\0\0\0").ok());
}

TEST(Mds, RefusesBrokenArrays) {
  EXPECT_FALSE(ParseMdsTokens("ndarray:uint16", "").ok());
  EXPECT_FALSE(ParseMdsTokens("ndarray:uint16", std::string("\x00\x01", 2)).ok());  // No dimension.
  EXPECT_FALSE(ParseMdsTokens("ndarray:uint16", std::string("\x04\x00", 2)).ok());  // Dimension 0.
  EXPECT_FALSE(ParseMdsTokens("ndarray:uint16", std::string("\x04\x02\x01\x00", 4)).ok());
  EXPECT_FALSE(ParseMdsTokens("ndarray:uint16", std::string("\x07\xff\xff\xff", 4)).ok());
  // Dimensions whose product overflows.
  EXPECT_FALSE(ParseMdsTokens("ndarray:uint16", "\x0b" + std::string(16, '\xff')).ok());
  EXPECT_FALSE(ParseMdsTokens("ndarray:nothing", "\x04\x01\x01\x01").ok());
  EXPECT_FALSE(ParseMdsTokens("bytes", "1234567").ok());
}

TEST(Mds, HashesHaveTheirPublishedValues) {
  EXPECT_EQ(MdsHashHex("sha1", "abc"), "a9993e364706816aba3e25717850c26c9cd0d89d");
  EXPECT_EQ(MdsHashHex("md5", ""), "d41d8cd98f00b204e9800998ecf8427e");
  EXPECT_EQ(MdsHashHex("xxh64", ""), "ef46db3751d8e999");
  EXPECT_EQ(MdsHashHex("xxh32", ""), "02cc5d05");
  EXPECT_EQ(MdsHashHex("xxh3_64", ""), "2d06800538d394c2");
  EXPECT_EQ(MdsHashHex("xxh3_128", ""), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(MdsHashHex("crc7", ""), std::nullopt);
}

TEST(Mds, PythonJsonMatchesJsonDumps) {
  const Json value = {{"b", {1, nullptr, true}}, {"a", "\xc3\xa9\"\n"}, {"c", Json::object()}};
  EXPECT_EQ(PythonJson(value), R"({"a": "\u00e9\"\n", "b": [1, null, true], "c": {}})");
}

TEST(MdsIndexParsing, RefusesImpossibleIndexes) {
  const TempFolder folder;
  const Json good = *ParseJson(WriteSmall(folder.path()), "index");
  ASSERT_TRUE(ParseMdsIndex(good.dump(), "index").ok());
  const auto refused = [&](const std::string& pointer, const Json& value) {
    Json bad = good;
    bad[Json::json_pointer(pointer)] = value;
    const Result<MdsIndex> index = ParseMdsIndex(bad.dump(), "index.json");
    EXPECT_FALSE(index.ok()) << pointer << " = " << value;
    if (!index.ok()) {
      EXPECT_NE(index.error().message.find("index.json"), std::string::npos);
    }
  };
  refused("/version", 1);
  refused("/shards", 5);
  refused("/shards/0/format", "json");
  refused("/shards/0/version", 3);
  refused("/shards/0/samples", -1);
  refused("/shards/0/samples", 1'000'000'000'000);
  refused("/shards/0/samples", INT64_MAX);
  refused("/shards/0/raw_data/basename", "../../etc/passwd");
  refused("/shards/0/raw_data/basename", "/etc/passwd");
  refused("/shards/0/raw_data/bytes", -5);
  refused("/shards/0/raw_data/bytes", int64_t{1} << 33);
  refused("/shards/0/raw_data/bytes", 1e30);
  refused("/shards/0/raw_data", nullptr);
  refused("/shards/0/column_names", Json::array({"a"}));
  refused("/shards/0/column_names", Json::array({"b", "a", "tokens"}));
  refused("/shards/0/column_sizes", Json::array({nullptr, -8, nullptr}));
  refused("/shards/0/column_sizes", Json::array({nullptr, UINT64_MAX, nullptr}));
  refused("/shards/0/column_encodings/0", 7);
  EXPECT_FALSE(ParseMdsIndex("", "x").ok());
  EXPECT_FALSE(ParseMdsIndex("{\"version\": 2}", "x").ok());
  EXPECT_FALSE(ParseMdsIndex("[[[", "x").ok());
}

TEST(MdsVerification, NamesWhatIsDamaged) {
  const TempFolder folder;
  WriteSmall(folder.path());
  const std::filesystem::path path = folder.path() / "shard.00000.mds";
  const std::string good = *ReadFile(path);
  const auto problems = [&](const std::string& content) {
    folder.Write("shard.00000.mds", content);
    const Result<MdsVerifyReport> report = VerifyMds(folder.path(), {.vocab_size = 100});
    EXPECT_TRUE(report.ok());
    std::string all;
    for (const std::string& problem : report->problems) all += problem + "\n";
    return all;
  };
  EXPECT_EQ(problems(good), "");
  EXPECT_NE(problems(good.substr(0, good.size() - 1)).find("its index says"), std::string::npos);
  std::string bad = good;
  bad.back() = '\x7f';  // The high byte of the last id.
  EXPECT_NE(problems(bad).find("sha256"), std::string::npos);
  EXPECT_NE(problems(bad).find("sample 2: token id 32514"), std::string::npos) << problems(bad);
  bad = good;
  bad[8] = '\xff';  // End of sample 0.
  EXPECT_NE(problems(bad).find("sample 0"), std::string::npos) << problems(bad);
  bad = good;
  bad[0] = 4;
  EXPECT_NE(problems(bad).find("offset 0"), std::string::npos) << problems(bad);
  std::filesystem::remove(path);
  EXPECT_NE(VerifyMds(folder.path(), {})->problems[0].find("shard.00000.mds"), std::string::npos);
}

TEST(DocumentTable, RefusesDamage) {
  const TempFolder folder;
  const std::filesystem::path path = folder.path() / "documents.idx";
  const std::vector<uint32_t> tokens = {3, 5, 7};
  const std::vector<uint32_t> bytes = {30, 50, 70};
  ASSERT_TRUE(WriteDocumentTable(path, tokens, bytes).ok());
  const Result<DocumentTable> table = DocumentTable::Parse(path);
  ASSERT_TRUE(table.ok()) << table.error().message;
  EXPECT_EQ(table->total_tokens(), 15);
  EXPECT_EQ(table->bytes(2), 70);
  const std::string good = *ReadFile(path);
  ASSERT_EQ(good.size(), 72u);
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x40);
    folder.Write("documents.idx", bad);
    EXPECT_FALSE(DocumentTable::Parse(path).ok()) << "byte " << i;
    folder.Write("documents.idx", good.substr(0, i));
    EXPECT_FALSE(DocumentTable::Parse(path).ok()) << "length " << i;
  }
}

}  // namespace
}  // namespace tessera
