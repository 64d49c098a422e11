#include "data/shard_codec.h"

#include <brotli/decode.h>
#include <bzlib.h>
#include <fmt/format.h>
#include <snappy.h>

#include <algorithm>
#include <array>
#include <memory>

#include "data/input_stream.h"

namespace tessera {

namespace {

constexpr std::array<std::string_view, 5> kKnown = {"zstd", "gz", "br", "bz2", "snappy"};

std::string_view Algorithm(std::string_view compression) {
  return compression.substr(0, compression.find(':'));
}

Error NotDecodable(const std::string& name, std::string_view algorithm) {
  return Corrupt(fmt::format("'{}' is no valid {} data: it was cut off or damaged; download it again",
                             name, algorithm));
}

// A buffer that grows as data arrive, to one byte more than expected: enough to see that more comes.
class Output {
 public:
  explicit Output(int64_t limit) : limit_(limit + 1) {}
  // Free space behind what was written; at least one byte unless the limit is reached.
  std::pair<char*, int64_t> Space() {
    if (done_ == static_cast<int64_t>(bytes_.size())) {
      bytes_.resize(
          static_cast<size_t>(std::min(limit_, std::max<int64_t>(2 * done_, int64_t{1} << 20))));
    }
    return {bytes_.data() + done_, static_cast<int64_t>(bytes_.size()) - done_};
  }
  void Advance(int64_t count) { done_ += count; }
  bool full() const { return done_ == limit_; }
  std::vector<char> Take() && {
    bytes_.resize(static_cast<size_t>(done_));
    return std::move(bytes_);
  }

 private:
  std::vector<char> bytes_;
  int64_t done_ = 0;
  int64_t limit_;
};

Status DecodeStream(std::string_view data, const std::string& name, Output* out) {
  TESSERA_ASSIGN(std::unique_ptr<InputStream> stream, InputStream::OpenMemory(data, name));
  while (!out->full()) {
    const auto [space, count] = out->Space();
    TESSERA_ASSIGN(const int64_t got, stream->Read(space, count));
    if (got == 0) break;
    out->Advance(got);
  }
  return {};
}

Status DecodeBrotli(std::string_view data, const std::string& name, Output* out) {
  const std::unique_ptr<BrotliDecoderState, decltype(&BrotliDecoderDestroyInstance)> state(
      BrotliDecoderCreateInstance(nullptr, nullptr, nullptr), &BrotliDecoderDestroyInstance);
  if (!state) return OutOfMemory(fmt::format("no memory to decompress '{}'", name));
  const uint8_t* next = reinterpret_cast<const uint8_t*>(data.data());
  size_t left = data.size();
  while (!out->full()) {
    const auto [space, count] = out->Space();
    uint8_t* to = reinterpret_cast<uint8_t*>(space);
    size_t room = static_cast<size_t>(count);
    const BrotliDecoderResult result =
        BrotliDecoderDecompressStream(state.get(), &left, &next, &room, &to, nullptr);
    out->Advance(count - static_cast<int64_t>(room));
    if (result == BROTLI_DECODER_RESULT_SUCCESS) {
      return left == 0 ? Status() : NotDecodable(name, "brotli");
    }
    if (result != BROTLI_DECODER_RESULT_NEEDS_MORE_OUTPUT) return NotDecodable(name, "brotli");
  }
  return {};
}

Status DecodeBzip2(std::string_view data, const std::string& name, Output* out) {
  bz_stream stream = {};
  if (BZ2_bzDecompressInit(&stream, 0, 0) != BZ_OK) {
    return OutOfMemory(fmt::format("no memory to decompress '{}'", name));
  }
  const std::unique_ptr<bz_stream, int (*)(bz_stream*)> guard(&stream, &BZ2_bzDecompressEnd);
  size_t fed = 0;
  while (!out->full()) {
    if (stream.avail_in == 0 && fed < data.size()) {
      const size_t count = std::min<size_t>(data.size() - fed, size_t{1} << 30);
      stream.next_in = const_cast<char*>(data.data() + fed);
      stream.avail_in = static_cast<unsigned>(count);
      fed += count;
    }
    const auto [space, count] = out->Space();
    const unsigned room = static_cast<unsigned>(std::min<int64_t>(count, int64_t{1} << 30));
    stream.next_out = space;
    stream.avail_out = room;
    const unsigned before = stream.avail_in;
    const int code = BZ2_bzDecompress(&stream);
    out->Advance(room - stream.avail_out);
    if (code == BZ_STREAM_END) {
      return stream.avail_in == 0 && fed == data.size() ? Status() : NotDecodable(name, "bzip2");
    }
    const bool stuck = stream.avail_out == room && stream.avail_in == before && fed == data.size();
    if (code != BZ_OK || stuck) return NotDecodable(name, "bzip2");
  }
  return {};
}

Status DecodeSnappy(std::string_view data, int64_t raw_bytes, const std::string& name,
                    std::vector<char>* out) {
  size_t size = 0;
  if (!snappy::GetUncompressedLength(data.data(), data.size(), &size)) {
    return NotDecodable(name, "snappy");
  }
  // The block says its size; a copy of 3 bytes gives at most 64, so a larger claim is a lie.
  if (static_cast<int64_t>(size) != raw_bytes || size / 64 > data.size()) {
    return Corrupt(fmt::format("'{}' says that it decompresses to {} bytes, its index says {}", name,
                               size, raw_bytes));
  }
  out->resize(size);
  if (!snappy::RawUncompress(data.data(), data.size(), out->data())) {
    return NotDecodable(name, "snappy");
  }
  return {};
}

}  // namespace

bool IsShardCompression(std::string_view compression) {
  return std::find(kKnown.begin(), kKnown.end(), Algorithm(compression)) != kKnown.end();
}

Result<std::vector<char>> DecompressShard(std::string_view compression, std::string_view data,
                                          int64_t raw_bytes, const std::string& name) {
  const std::string_view algorithm = Algorithm(compression);
  if (!IsShardCompression(compression)) {
    return Unsupported(fmt::format("'{}' is compressed with '{}'; zstd, gz, br, bz2 and snappy are read",
                                   name, compression));
  }
  if (algorithm == "snappy") {
    std::vector<char> out;
    TESSERA_TRY(DecodeSnappy(data, raw_bytes, name, &out));
    return out;
  }
  Output output(raw_bytes);
  if (algorithm == "br") {
    TESSERA_TRY(DecodeBrotli(data, name, &output));
  } else if (algorithm == "bz2") {
    TESSERA_TRY(DecodeBzip2(data, name, &output));
  } else {
    const Compression wanted = algorithm == "zstd" ? Compression::kZstd : Compression::kGzip;
    if (DetectCompression(data) != wanted) return NotDecodable(name, algorithm);
    TESSERA_TRY(DecodeStream(data, name, &output));
  }
  const bool full = output.full();
  std::vector<char> out = std::move(output).Take();
  if (static_cast<int64_t>(out.size()) != raw_bytes) {
    return Corrupt(fmt::format("'{}' decompresses to {} bytes where its index says {}", name,
                               full ? "more" : fmt::format("{}", out.size()), raw_bytes));
  }
  return out;
}

}  // namespace tessera
