// Temporary folders, small corpora and a byte tokenizer for the tests of this folder.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "base/files.h"
#include "data/build.h"

namespace tessera {

class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "tessera-data-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempFolder() {
    std::error_code code;
    std::filesystem::remove_all(path_, code);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

  std::filesystem::path Write(const std::string& name, std::string_view content) const {
    const std::filesystem::path file = path_ / name;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream out(file, std::ios::binary);
    out.write(content.data(), static_cast<std::streamsize>(content.size()));
    return file;
  }

 private:
  std::filesystem::path path_;
};

// Bytes as ids 0..255; 256 ends a text.
inline TokenEncoder ByteEncoder(int64_t vocab_size = 257) {
  TokenEncoder encoder;
  encoder.encode = [](std::string_view text, std::vector<int32_t>* ids) {
    for (const char c : text) ids->push_back(static_cast<uint8_t>(c));
  };
  encoder.eos_id = 256;
  encoder.vocab_size = vocab_size;
  encoder.fingerprint = "bytes";
  return encoder;
}

inline std::string DocumentText(int i) {
  std::string text = "document " + std::to_string(i) + ":";
  for (int k = 0; k < 5 + i * 37 % 200; ++k) text += static_cast<char>('a' + (i + k) % 26);
  return text;
}

// Documents d0000.txt, d0001.txt, ... below folder/corpus.
inline SourceConfig WriteCorpus(const TempFolder& folder, int documents) {
  for (int i = 0; i < documents; ++i) {
    char name[32];
    std::snprintf(name, sizeof(name), "corpus/d%04d.txt", i);
    folder.Write(name, DocumentText(i));
  }
  SourceConfig source;
  source.name = "corpus";
  source.paths = {(folder.path() / "corpus").string()};
  source.license = "CC0-1.0";
  return source;
}

inline BuildOptions CorpusOptions(const TempFolder& folder, int documents) {
  BuildOptions options;
  options.output = folder.path() / "dataset";
  options.sources = {WriteCorpus(folder, documents)};
  options.encoder = ByteEncoder();
  options.validation_fraction = 0.2;
  options.threads = 1;
  options.shard_bytes = 8192;  // Several shards.
  return options;
}

}  // namespace tessera
