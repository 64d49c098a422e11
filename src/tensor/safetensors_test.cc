#include "tensor/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/rng.h"
#include "base/test_folder.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace tessera {
namespace {

// A file from a header text and a buffer of zeros.
std::string FileOf(std::string_view header, size_t buffer_bytes) {
  const uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  file += header;
  file.append(buffer_bytes, '\0');
  return file;
}

Result<SafetensorsHeader> Parse(const std::string& file) {
  return ParseSafetensorsHeader(std::as_bytes(std::span(file.data(), file.size())),
                                static_cast<int64_t>(file.size()), "test");
}

void ExpectCorrupt(std::string_view header, size_t buffer_bytes, std::string_view part) {
  const auto parsed = Parse(FileOf(header, buffer_bytes));
  ASSERT_FALSE(parsed.ok()) << header;
  EXPECT_EQ(parsed.error().code, ErrorCode::kCorrupt) << parsed.error().message;
  EXPECT_NE(parsed.error().message.find(part), std::string::npos) << parsed.error().message;
}

TEST(Safetensors, WritesTheReferenceBytes) {
  // The bytes that Python's safetensors 0.4 writes for the same tensors.
  const TestFolder folder;
  const float a[2] = {1.0f, -2.0f};
  const uint8_t b[3] = {1, 2, 3};
  const int64_t c[1] = {7};
  const std::vector<TensorView> tensors = {
      {"b", DType::kU8, {3}, b}, {"z.a", DType::kF32, {2, 1}, a}, {"c", DType::kI64, {}, c}};
  ASSERT_TRUE(WriteSafetensors(folder / "x.safetensors", tensors, {{"format", "pt"}}).ok());
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"c":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
      R"("z.a":{"dtype":"F32","shape":[2,1],"data_offsets":[8,16]},)"
      R"("b":{"dtype":"U8","shape":[3],"data_offsets":[16,19]}})";
  std::string expected = FileOf(header + std::string((8 - header.size() % 8) % 8, ' '), 19);
  std::memcpy(expected.data() + expected.size() - 19, c, 8);
  std::memcpy(expected.data() + expected.size() - 11, a, 8);
  std::memcpy(expected.data() + expected.size() - 3, b, 3);
  const auto written = ReadFile(folder / "x.safetensors");
  ASSERT_TRUE(written.ok());
  EXPECT_EQ(*written, expected);
  EXPECT_EQ(SafetensorsBytes(tensors, {{"format", "pt"}}), static_cast<int64_t>(expected.size()));
}

TEST(Safetensors, ReadsBackWhatItWrote) {
  const TestFolder folder;
  std::vector<float> weights(300'001);  // More than one piece of the writer.
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(i) * 0.25f;
  const std::vector<uint16_t> half = {1, 2, 3, 4};
  const std::vector<TensorView> tensors = {
      {"w\"\n\xc3\xa9", DType::kF32, {300'001}, weights.data()},
      {"h", DType::kBf16, {2, 2}, half.data()},
      {"empty", DType::kF32, {0, 5}, nullptr}};
  ASSERT_TRUE(WriteSafetensors(folder / "x.safetensors", tensors, {}).ok());

  const auto file = SafetensorsFile::Open(folder / "x.safetensors");
  ASSERT_TRUE(file.ok()) << file.error().message;
  const SafetensorsEntry* entry = file->header().Find("h");
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(entry->shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(std::memcmp(file->data(*entry).data(), half.data(), 8), 0);
  EXPECT_EQ(file->header().Find("absent"), nullptr);

  std::vector<float> read(weights.size());
  const TensorTarget target = {"w\"\n\xc3\xa9", DType::kF32, {300'001}, read.data()};
  const Status status = ReadSafetensors(folder / "x.safetensors", {&target, 1});
  ASSERT_TRUE(status.ok()) << status.error().message;
  EXPECT_EQ(read, weights);
}

TEST(Safetensors, NamesTheTensorsThatDiffer) {
  const TestFolder folder;
  const float data[4] = {};
  const std::vector<TensorView> tensors = {{"a", DType::kF32, {2, 2}, data},
                                           {"b", DType::kF32, {4}, data}};
  ASSERT_TRUE(WriteSafetensors(folder / "x.safetensors", tensors, {}).ok());
  float sink[4] = {9, 9, 9, 9};
  const std::vector<TensorTarget> targets = {{"a", DType::kF32, {2, 2}, sink},
                                             {"b", DType::kF32, {2, 2}, sink},
                                             {"c", DType::kF32, {1}, sink}};
  const Status status = ReadSafetensors(folder / "x.safetensors", targets);
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.error().message.find("'b' is f32 [4], expected f32 [2, 2]; 'c' is missing"),
            std::string::npos)
      << status.error().message;
  EXPECT_EQ(sink[0], 9.0f) << "nothing may be overwritten before all tensors are checked";
}

TEST(Safetensors, RefusesWrongLengths) {
  EXPECT_FALSE(Parse("").ok());
  EXPECT_FALSE(Parse("1234567").ok());
  std::string huge(16, '\xff');
  EXPECT_FALSE(Parse(huge).ok());
  std::string cut = FileOf("{}", 0);
  cut[0] = 3;
  EXPECT_FALSE(Parse(cut).ok());
  EXPECT_TRUE(Parse(FileOf("{}", 0)).ok());
  EXPECT_TRUE(Parse(FileOf("{}      ", 0)).ok());
}

TEST(Safetensors, RefusesHostileHeaders) {
  const std::string one = R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  ASSERT_TRUE(Parse(FileOf("{" + one + "}", 4)).ok());
  ExpectCorrupt("{" + one + "}", 5, "end at byte 4 of a buffer of 5");
  ExpectCorrupt("{" + one + "}", 3, "leave the buffer");
  ExpectCorrupt("{" + one + "," + one + "}", 4, "'a' twice");
  ExpectCorrupt("[" + std::string("1") + "]", 0, "not an object");
  ExpectCorrupt("{" + one, 4, "not valid JSON");
  ExpectCorrupt(std::string(100, '[') + std::string(100, ']'), 0, "64 levels");
  ExpectCorrupt(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, "hole");
  ExpectCorrupt("{" + one + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})", 6,
                "inside a tensor");
  ExpectCorrupt(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
                "overflows");
  ExpectCorrupt(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}})", 0, "not a size");
  ExpectCorrupt(R"({"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,0]}})", 0, "not a size");
  ExpectCorrupt(R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,0]}})", 0,
                "not a size");
  ExpectCorrupt(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "needs 8");
  ExpectCorrupt(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4, "leave the buffer");
  ExpectCorrupt(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4, "not a pair");
  ExpectCorrupt(R"({"a":{"dtype":"F32","shape":[1]}})", 4, "exactly");
  ExpectCorrupt(R"({"a":3})", 0, "not an object");
  ExpectCorrupt(R"({"__metadata__":{"x":1}})", 0, "not a string");
  const auto unknown = Parse(FileOf(R"({"a":{"dtype":"Q9","shape":[],"data_offsets":[0,1]}})", 1));
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.error().code, ErrorCode::kUnsupported);
}

TEST(Safetensors, SurvivesMutatedFiles) {
  const std::string seed = FileOf(
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
      R"("b":{"dtype":"BF16","shape":[1,3],"data_offsets":[8,14]}})",
      14);
  const RngKey rng{.seed = 7, .purpose = RngPurpose::kSampling, .stream = 1};
  for (uint64_t round = 0; round < 20'000; ++round) {
    std::string file = seed;
    const auto words = rng.Block(round);
    const size_t edits = 1 + words[0] % 4;
    for (size_t i = 0; i < edits; ++i) {
      const auto edit = rng.Block((round << 8) + i + (uint64_t{1} << 40));
      if (file.empty()) break;
      const size_t at = edit[0] % file.size();
      switch (edit[1] % 4) {
        case 0:
          file[at] = static_cast<char>(edit[2]);
          break;
        case 1:
          file.erase(at, edit[2] % 5);
          break;
        case 2:
          file.insert(at, 1, static_cast<char>('0' + edit[2] % 10));
          break;
        default:
          file.resize(at);
          break;
      }
    }
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(file.data()), file.size());
  }
}

}  // namespace
}  // namespace tessera
