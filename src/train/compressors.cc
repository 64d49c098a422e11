#include "train/compressors.h"

#include <fmt/format.h>
#include <lzma.h>
#include <zlib.h>

#include <algorithm>
#include <bit>
#include <vector>

#include "base/signals.h"
#include "data/mds_reader.h"

namespace tessera {

namespace {

constexpr size_t kPiece = size_t{1} << 18;

Error Stopped() {
  return Error{.code = ErrorCode::kCancelled, .message = "stopped while compressing held-out text"};
}

Result<int64_t> GzipBytes(std::string_view text) {
  z_stream stream = {};
  // 15 bits of window, +16 for gzip's header; memory level 8 is gzip's own.
  if (deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK) {
    return OutOfMemory("zlib could not start");
  }
  std::vector<unsigned char> out(kPiece);
  int64_t bytes = 0;
  size_t position = 0;
  int result = Z_OK;
  while (result != Z_STREAM_END && !StopRequested()) {
    const size_t piece = std::min(kPiece, text.size() - position);
    stream.next_in = reinterpret_cast<unsigned char*>(const_cast<char*>(text.data() + position));
    stream.avail_in = static_cast<unsigned>(piece);
    position += piece;
    do {
      stream.next_out = out.data();
      stream.avail_out = static_cast<unsigned>(out.size());
      result = deflate(&stream, position == text.size() ? Z_FINISH : Z_NO_FLUSH);
      bytes += static_cast<int64_t>(out.size() - stream.avail_out);
    } while (stream.avail_out == 0 && result != Z_STREAM_END);
  }
  deflateEnd(&stream);
  if (result != Z_STREAM_END) return Stopped();
  return bytes;
}

Result<int64_t> XzBytes(std::string_view text) {
  lzma_options_lzma options;
  lzma_lzma_preset(&options, 9 | LZMA_PRESET_EXTREME);
  // -9 would take 64 MiB of dictionary and ten times that of memory; beyond the text's own length a
  // dictionary changes nothing.
  options.dict_size = std::min<uint32_t>(
      options.dict_size,
      static_cast<uint32_t>(std::bit_ceil(std::clamp<uint64_t>(text.size(), 4096, 1u << 26))));
  const lzma_filter filters[] = {{LZMA_FILTER_LZMA2, &options}, {LZMA_VLI_UNKNOWN, nullptr}};
  lzma_stream stream = LZMA_STREAM_INIT;
  if (lzma_stream_encoder(&stream, filters, LZMA_CHECK_CRC64) != LZMA_OK) {
    return OutOfMemory("liblzma could not start");
  }
  std::vector<uint8_t> out(kPiece);
  int64_t bytes = 0;
  size_t position = 0;
  lzma_ret result = LZMA_OK;
  while (result == LZMA_OK && !StopRequested()) {
    const size_t piece = std::min(kPiece, text.size() - position);
    stream.next_in = reinterpret_cast<const uint8_t*>(text.data() + position);
    stream.avail_in = piece;
    position += piece;
    do {
      stream.next_out = out.data();
      stream.avail_out = out.size();
      result = lzma_code(&stream, position == text.size() ? LZMA_FINISH : LZMA_RUN);
      bytes += static_cast<int64_t>(out.size() - stream.avail_out);
    } while (result == LZMA_OK && (stream.avail_out == 0 || stream.avail_in > 0));
  }
  lzma_end(&stream);
  if (result == LZMA_OK) return Stopped();
  if (result != LZMA_STREAM_END) {
    return Internal(fmt::format("liblzma failed with code {}", static_cast<int>(result)));
  }
  return bytes;
}

}  // namespace

Result<CompressorResult> CompressText(std::string_view text) {
  if (text.empty()) return InvalidArgument("there is no held-out text to compress");
  CompressorResult result;
  result.bytes = static_cast<int64_t>(text.size());
  TESSERA_ASSIGN(result.gzip_bytes, GzipBytes(text));
  TESSERA_ASSIGN(result.xz_bytes, XzBytes(text));
  return result;
}

Result<std::string> DecodeSplit(const std::filesystem::path& split, const Tokenizer& tokenizer,
                                const std::string& column) {
  TESSERA_ASSIGN(MdsReader reader, MdsReader::Open(split));
  std::string text;
  std::vector<std::string_view> columns;
  std::vector<int32_t> ids;
  for (int64_t sample = 0; sample < reader.samples(); ++sample) {
    if (StopRequested()) return Stopped();
    const MdsShard& shard = reader.ShardOf(sample);
    const int64_t index = shard.FindColumn(column);
    if (index < 0) {
      return InvalidArgument(fmt::format("{}: no column '{}'", reader.Where(sample), column));
    }
    TESSERA_TRY(reader.Columns(sample, &columns));
    TESSERA_ASSIGN(const MdsTokens tokens,
                   ParseMdsTokens(shard.columns[static_cast<size_t>(index)].encoding,
                                  columns[static_cast<size_t>(index)]));
    ids.resize(static_cast<size_t>(tokens.count));
    const int64_t largest = CopyMdsTokens(tokens, 0, tokens.count, ids.data());
    if (tokens.count > 0 && (largest < 0 || largest >= tokenizer.vocab_size())) {
      return Corrupt(fmt::format("{}: a token outside the vocabulary", reader.Where(sample)));
    }
    text += tokenizer.Decode(ids);
  }
  return text;
}

}  // namespace tessera
