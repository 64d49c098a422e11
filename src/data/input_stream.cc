#include "data/input_stream.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <lzma.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "base/hash.h"
#include "base/strings.h"

namespace tessera {

namespace {

constexpr int64_t kBufferBytes = int64_t{1} << 18;
// The dictionary that an xz file may ask for; `xz -9` takes 65 MiB.
constexpr uint64_t kXzMemoryLimit = uint64_t{1} << 30;

// Stored bytes with a look-ahead buffer, from a file descriptor or from memory.
class StoredBytes {
 public:
  StoredBytes(int fd, std::string name) : fd_(fd), name_(std::move(name)) {
    buffer_.resize(kBufferBytes);
  }
  StoredBytes(std::string_view data, std::string name)
      : name_(std::move(name)), pending_(data), bytes_(static_cast<int64_t>(data.size())) {
    hash_.Update(data.data(), bytes_);
  }
  ~StoredBytes() {
    if (fd_ >= 0) ::close(fd_);
  }
  StoredBytes(const StoredBytes&) = delete;
  StoredBytes& operator=(const StoredBytes&) = delete;

  // Unread bytes; refilled when empty, still empty only at the end.
  Result<std::string_view> Peek() {
    if (!pending_.empty() || fd_ < 0) return pending_;
    while (true) {
      const ssize_t got = ::read(fd_, buffer_.data(), buffer_.size());
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return ErrnoError("cannot read", name_, errno);
      pending_ = std::string_view(buffer_.data(), static_cast<size_t>(got));
      bytes_ += got;
      hash_.Update(buffer_.data(), got);
      return pending_;
    }
  }
  void Consume(size_t bytes) { pending_.remove_prefix(bytes); }

  const std::string& name() const { return name_; }
  int64_t bytes() const { return bytes_; }
  uint64_t hash() const { return hash_.Digest(); }

 private:
  int fd_ = -1;
  std::string name_;
  std::vector<char> buffer_;
  std::string_view pending_;
  int64_t bytes_ = 0;
  Xxh3Stream hash_;
};

// The state that all codecs share; each decodes what it can of one input and output buffer.
class StreamBase : public InputStream {
 public:
  explicit StreamBase(std::unique_ptr<StoredBytes> stored) : stored_(std::move(stored)) {}
  int64_t stored_bytes() const override { return stored_->bytes(); }
  uint64_t stored_hash() const override { return stored_->hash(); }

 protected:
  Error EndsEarly(std::string_view codec) const {
    return Corrupt(fmt::format("'{}': the {} data end early after {} bytes (file cut off?)",
                               stored_->name(), codec, stored_->bytes()));
  }
  Error Invalid(std::string_view codec, std::string_view detail) const {
    return Corrupt(fmt::format("'{}': not valid {} data near byte {}: {}", stored_->name(), codec,
                               stored_->bytes(), detail));
  }
  std::unique_ptr<StoredBytes> stored_;
};

class PlainStream : public StreamBase {
 public:
  using StreamBase::StreamBase;
  Result<int64_t> Read(char* out, int64_t capacity) override {
    TESSERA_ASSIGN(const std::string_view input, stored_->Peek());
    const size_t bytes = std::min(input.size(), static_cast<size_t>(capacity));
    if (bytes > 0) std::memcpy(out, input.data(), bytes);
    stored_->Consume(bytes);
    return static_cast<int64_t>(bytes);
  }
};

class GzipStream : public StreamBase {
 public:
  explicit GzipStream(std::unique_ptr<StoredBytes> stored) : StreamBase(std::move(stored)) {
    // 15 + 16: largest window, gzip wrapper only.
    TESSERA_CHECK(inflateInit2(&state_, 15 + 16) == Z_OK, "zlib gave no state");
  }
  ~GzipStream() override { inflateEnd(&state_); }

  Result<int64_t> Read(char* out, int64_t capacity) override {
    const uInt room = static_cast<uInt>(std::min<int64_t>(capacity, 1 << 30));
    state_.next_out = reinterpret_cast<Bytef*>(out);
    state_.avail_out = room;
    while (state_.avail_out == room) {
      TESSERA_ASSIGN(const std::string_view input, stored_->Peek());
      if (input.empty()) {
        if (in_member_) return EndsEarly("gzip");
        return int64_t{0};
      }
      const uInt offered = static_cast<uInt>(std::min<size_t>(input.size(), 1 << 30));
      state_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(input.data()));
      state_.avail_in = offered;
      in_member_ = true;
      const int code = inflate(&state_, Z_NO_FLUSH);
      stored_->Consume(offered - state_.avail_in);
      if (code == Z_STREAM_END) {
        in_member_ = false;
        inflateReset(&state_);
      } else if (code != Z_OK && code != Z_BUF_ERROR) {
        return Invalid("gzip", state_.msg != nullptr ? state_.msg : "unknown error");
      }
    }
    return static_cast<int64_t>(room - state_.avail_out);
  }

 private:
  z_stream state_ = {};
  bool in_member_ = false;
};

class ZstdStream : public StreamBase {
 public:
  explicit ZstdStream(std::unique_ptr<StoredBytes> stored)
      : StreamBase(std::move(stored)), state_(ZSTD_createDCtx()) {
    TESSERA_CHECK(state_ != nullptr, "zstd gave no state");
  }
  ~ZstdStream() override { ZSTD_freeDCtx(state_); }

  Result<int64_t> Read(char* out, int64_t capacity) override {
    ZSTD_outBuffer output = {out, static_cast<size_t>(capacity), 0};
    while (output.pos == 0) {
      TESSERA_ASSIGN(const std::string_view data, stored_->Peek());
      if (data.empty() && !in_frame_) return int64_t{0};
      ZSTD_inBuffer input = {data.data(), data.size(), 0};
      const size_t code = ZSTD_decompressStream(state_, &output, &input);
      if (ZSTD_isError(code)) return Invalid("zstd", ZSTD_getErrorName(code));
      stored_->Consume(input.pos);
      in_frame_ = code != 0;
      if (data.empty() && in_frame_ && output.pos == 0) return EndsEarly("zstd");
    }
    return static_cast<int64_t>(output.pos);
  }

 private:
  ZSTD_DCtx* state_;
  bool in_frame_ = false;
};

class XzStream : public StreamBase {
 public:
  explicit XzStream(std::unique_ptr<StoredBytes> stored) : StreamBase(std::move(stored)) {
    TESSERA_CHECK(lzma_stream_decoder(&state_, kXzMemoryLimit, LZMA_CONCATENATED) == LZMA_OK,
                  "liblzma gave no state");
  }
  ~XzStream() override { lzma_end(&state_); }

  Result<int64_t> Read(char* out, int64_t capacity) override {
    if (ended_) return int64_t{0};
    state_.next_out = reinterpret_cast<uint8_t*>(out);
    state_.avail_out = static_cast<size_t>(capacity);
    while (state_.avail_out == static_cast<size_t>(capacity)) {
      TESSERA_ASSIGN(const std::string_view input, stored_->Peek());
      state_.next_in = reinterpret_cast<const uint8_t*>(input.data());
      state_.avail_in = input.size();
      const lzma_ret code = lzma_code(&state_, input.empty() ? LZMA_FINISH : LZMA_RUN);
      stored_->Consume(input.size() - state_.avail_in);
      if (code == LZMA_STREAM_END) {
        ended_ = true;
        break;
      }
      if (code == LZMA_BUF_ERROR) return EndsEarly("xz");
      if (code == LZMA_MEMLIMIT_ERROR) {
        return Unsupported(fmt::format("'{}': needs more than {} of memory to decompress; compress "
                                       "it again with a lower level",
                                       stored_->name(),
                                       FormatBytes(static_cast<int64_t>(kXzMemoryLimit))));
      }
      if (code != LZMA_OK) return Invalid("xz", fmt::format("liblzma code {}", int{code}));
    }
    return static_cast<int64_t>(static_cast<size_t>(capacity) - state_.avail_out);
  }

 private:
  lzma_stream state_ = LZMA_STREAM_INIT;
  bool ended_ = false;
};

Result<std::unique_ptr<InputStream>> Open(std::unique_ptr<StoredBytes> stored) {
  TESSERA_ASSIGN(const std::string_view head, stored->Peek());
  std::unique_ptr<InputStream> stream;
  switch (DetectCompression(head)) {
    case Compression::kNone: stream = std::make_unique<PlainStream>(std::move(stored)); break;
    case Compression::kGzip: stream = std::make_unique<GzipStream>(std::move(stored)); break;
    case Compression::kZstd: stream = std::make_unique<ZstdStream>(std::move(stored)); break;
    case Compression::kXz: stream = std::make_unique<XzStream>(std::move(stored)); break;
  }
  return stream;
}

}  // namespace

Compression DetectCompression(std::string_view head) {
  // gzip: RFC 1952 with its only method, deflate. zstd: RFC 8878. xz: The .xz File Format 1.1.0.
  if (head.starts_with("\x1f\x8b\x08")) return Compression::kGzip;
  if (head.starts_with("\x28\xb5\x2f\xfd")) return Compression::kZstd;
  if (head.starts_with(std::string_view("\xfd"
                                        "7zXZ\0",
                                        6))) {
    return Compression::kXz;
  }
  return Compression::kNone;
}

Result<std::unique_ptr<InputStream>> InputStream::OpenFile(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoError("cannot open", path.string(), errno);
  return Open(std::make_unique<StoredBytes>(fd, path.string()));
}

Result<std::unique_ptr<InputStream>> InputStream::OpenMemory(std::string_view data,
                                                             std::string name) {
  return Open(std::make_unique<StoredBytes>(data, std::move(name)));
}

Result<std::string> ReadAll(InputStream& stream, int64_t max_bytes, std::string_view name) {
  std::string text;
  std::vector<char> buffer(static_cast<size_t>(kBufferBytes));
  while (true) {
    TESSERA_ASSIGN(const int64_t got, stream.Read(buffer.data(), kBufferBytes));
    if (got == 0) return text;
    if (static_cast<int64_t>(text.size()) + got > max_bytes) {
      return InvalidArgument(fmt::format("'{}' holds a text of more than {}, the most that one "
                                         "document may have; cut it into files or jsonl lines, or "
                                         "raise the limit",
                                         name, FormatBytes(max_bytes)));
    }
    text.append(buffer.data(), static_cast<size_t>(got));
  }
}

}  // namespace tessera
