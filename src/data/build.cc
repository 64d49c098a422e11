#include "data/build.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>

#include "base/files.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/signals.h"
#include "base/threads.h"
#include "base/time.h"
#include "data/document_reader.h"
#include "data/document_table.h"
#include "data/mds_writer.h"

namespace tessera {

namespace fs = std::filesystem;

namespace {

// Records of one parallel round: enough for every thread to have work, few enough to bound memory.
constexpr int64_t kRoundBytes = int64_t{16} << 20;
constexpr int64_t kRoundRecords = 8192;

Result<std::vector<SourceListing>> ListAll(const std::vector<SourceConfig>& sources) {
  TESSERA_TRY(ValidateSources(sources));
  std::vector<SourceListing> listings;
  for (const SourceConfig& source : sources) {
    TESSERA_ASSIGN(SourceListing listing, ListSource(source));
    for (const auto& [extension, count] : listing.skipped_extensions) {
      LogWarning("source '{}': left out {} file{} with extension {}", source.name, count,
                 count == 1 ? "" : "s", extension);
    }
    listings.push_back(std::move(listing));
  }
  return listings;
}

Status CheckOptions(const BuildOptions& options) {
  if (!(options.validation_fraction >= 0) || options.validation_fraction >= 1) {
    return InvalidArgument(fmt::format("validation_fraction {} is not in [0, 1)",
                                       options.validation_fraction));
  }
  if (options.shard_bytes < 4096 || options.shard_bytes > kMdsMaxShardBytes) {
    return InvalidArgument(fmt::format("shard_bytes {} is not between 4096 and {}",
                                       options.shard_bytes, kMdsMaxShardBytes));
  }
  // Lengths are stored in 32 bits, and a token has at least one byte.
  if (options.max_document_bytes < 1 || options.max_document_bytes > int64_t{UINT32_MAX}) {
    return InvalidArgument(fmt::format("max_document_bytes {} is not between 1 and {}",
                                       options.max_document_bytes, UINT32_MAX));
  }
  return {};
}

Status CheckEncoder(const TokenEncoder& encoder) {
  if (!encoder.encode) return InvalidArgument("no tokenizer");
  if (encoder.vocab_size < 1 || encoder.vocab_size > int64_t{INT32_MAX} || encoder.eos_id < 0 ||
      encoder.eos_id >= encoder.vocab_size) {
    return InvalidArgument(fmt::format("the tokenizer has {} tokens and the end-of-text id {}: it "
                                       "needs an end-of-text token within its vocabulary",
                                       encoder.vocab_size, encoder.eos_id));
  }
  return {};
}

std::string OptionsFingerprint(const BuildOptions& options) {
  Json sources = Json::array();
  for (const SourceConfig& source : options.sources) {
    sources.push_back({Xxh3(source.name), std::string(SourceFormatName(source.format)),
                       Xxh3(source.text_field), Xxh3(source.id_field), Xxh3(source.license),
                       source.weight});
  }
  const Json all = {{"version", kDatasetVersion},
                    {"sources", sources},
                    {"tokenizer", Xxh3(options.encoder.fingerprint)},
                    {"vocab_size", options.encoder.vocab_size},
                    {"eos_id", options.encoder.eos_id},
                    {"validation_fraction", options.validation_fraction},
                    {"split_seed", options.split_seed},
                    {"shard_bytes", options.shard_bytes}};
  return Sha256Hex(JsonText(all));
}

// Over identities, sizes and, depending on the use, times or content hashes.
class FilesDigest {
 public:
  void Add(const SourceFile& file, uint64_t mark) {
    sha_.Update(fmt::format("{}\n{} {} {}\n", file.identity.size(), file.identity, file.bytes, mark));
  }
  void NextSource() { sha_.Update("source\n"); }
  std::string Finish() { return sha_.FinishHex(); }

 private:
  Sha256 sha_;
};

std::string FilesStat(const std::vector<SourceListing>& listings) {
  FilesDigest digest;
  for (const SourceListing& listing : listings) {
    digest.NextSource();
    for (const SourceFile& file : listing.files) {
      digest.Add(file, static_cast<uint64_t>(file.mtime_ns));
    }
  }
  return digest.Finish();
}

std::string Fingerprint(const std::string& options, const std::string& files) {
  return Sha256Hex(options + files);
}

// The files' content as it is now; reads everything.
Result<std::string> HashFiles(const std::vector<SourceListing>& listings) {
  FilesDigest digest;
  for (const SourceListing& listing : listings) {
    digest.NextSource();
    for (const SourceFile& file : listing.files) {
      if (StopRequested()) return Error{ErrorCode::kCancelled, "stopped while comparing inputs"};
      TESSERA_ASSIGN(const MappedFile map, MappedFile::Open(file.path));
      digest.Add(file, Xxh3({reinterpret_cast<const char*>(map.data()),
                             static_cast<size_t>(map.size())}));
    }
  }
  return digest.Finish();
}

// One split that is being written.
class SplitWriter {
 public:
  static Result<SplitWriter> Create(const fs::path& folder, const BuildOptions& options,
                                    const std::string& token_encoding) {
    TESSERA_ASSIGN(MdsWriter writer,
                   MdsWriter::Create({.folder = folder,
                                      .columns = {{"bytes", "int"},
                                                  {"document", "str"},
                                                  {"source", "str"},
                                                  {"tokens", token_encoding}},
                                      .size_limit = options.shard_bytes}));
    return SplitWriter(folder, std::move(writer));
  }

  Status Add(std::string_view source, std::string_view identity, int64_t bytes,
             std::string_view tokens, int64_t token_count) {
    byte_value_.clear();
    AppendMdsInt(bytes, &byte_value_);
    const std::string_view values[] = {byte_value_, identity, source, tokens};
    TESSERA_TRY(writer_.Write(values));
    token_counts_.push_back(static_cast<uint32_t>(token_count));
    byte_counts_.push_back(static_cast<uint32_t>(bytes));
    info_.tokens += token_count;
    info_.bytes += bytes;
    return {};
  }

  Result<SplitInfo> Finish() {
    TESSERA_TRY(WriteDocumentTable(folder_ / kDocumentTableFile, token_counts_, byte_counts_));
    TESSERA_TRY(writer_.Finish());
    info_.documents = writer_.samples();
    info_.shards = writer_.shards();
    info_.shard_bytes = writer_.bytes();
    return info_;
  }

 private:
  SplitWriter(fs::path folder, MdsWriter writer)
      : folder_(std::move(folder)), writer_(std::move(writer)) {}

  fs::path folder_;
  MdsWriter writer_;
  std::string byte_value_;
  std::vector<uint32_t> token_counts_;
  std::vector<uint32_t> byte_counts_;
  SplitInfo info_;
};

// What a thread makes of one record.
struct Encoded {
  std::optional<Error> error;
  std::string identity;
  std::string tokens;  // Encoded column value; empty where the document is not written.
  int64_t token_count = 0;
  int64_t bytes = 0;
  bool validation = false;
  bool empty = false;
};

class Builder {
 public:
  Builder(const BuildOptions& options, const std::vector<SourceListing>& listings,
          const BuildProgressFn& progress, const fs::path& folder)
      : options_(options),
        listings_(listings),
        progress_fn_(progress),
        folder_(folder),
        pool_(options.threads),
        element_bytes_(options.encoder.vocab_size <= 65536 ? 2 : 4) {
    for (size_t i = 0; i < listings.size(); ++i) {
      int64_t bytes = 0;
      for (const SourceFile& file : listings[i].files) bytes += file.bytes;
      progress_.input_bytes_total += bytes * Passes(options.sources[i]);
    }
  }

  Result<DatasetInfo> Run() {
    DatasetInfo info;
    info.folder = folder_;
    info.token_encoding = element_bytes_ == 2 ? "ndarray:uint16" : "ndarray:uint32";
    TESSERA_ASSIGN(SplitWriter train,
                   SplitWriter::Create(info.train_folder(), options_, info.token_encoding));
    TESSERA_ASSIGN(SplitWriter validation,
                   SplitWriter::Create(info.validation_folder(), options_, info.token_encoding));
    FilesDigest digest;
    for (size_t i = 0; i < options_.sources.size(); ++i) {
      const SourceConfig& config = options_.sources[i];
      SourceInfo source{.name = config.name, .license = config.license, .weight = config.weight,
                        .paths = config.paths,
                        .files = static_cast<int64_t>(listings_[i].files.size())};
      // Copies come pass by pass, so that a document's copies never follow each other.
      for (int64_t pass = 0; pass < Passes(config); ++pass) {
        TESSERA_TRY(RunPass(i, pass, &source, &train, &validation, &digest));
      }
      info.sources.push_back(std::move(source));
    }
    info.options_fingerprint = OptionsFingerprint(options_);
    info.files_stat = FilesStat(listings_);
    info.fingerprint = Fingerprint(info.options_fingerprint, digest.Finish());
    info.tokenizer_fingerprint = options_.encoder.fingerprint;
    info.vocab_size = options_.encoder.vocab_size;
    info.eos_id = options_.encoder.eos_id;
    info.validation_fraction = options_.validation_fraction;
    info.split_seed = options_.split_seed;
    TESSERA_ASSIGN(info.train, train.Finish());
    TESSERA_ASSIGN(info.validation, validation.Finish());
    TESSERA_TRY(CheckNotEmpty(info));
    if (!options_.encoder.file.empty()) {
      TESSERA_ASSIGN(const std::string tokenizer, ReadFile(options_.encoder.file));
      TESSERA_TRY(WriteFileAtomic(info.tokenizer_file(), tokenizer));
    }
    TESSERA_TRY(WriteDatasetInfo(info));
    return info;
  }

 private:
  static int64_t Passes(const SourceConfig& source) {
    return static_cast<int64_t>(std::ceil(source.weight));
  }

  Status CheckNotEmpty(const DatasetInfo& info) const {
    if (info.train.documents > 0) {
      if (info.validation.documents == 0 && options_.validation_fraction > 0) {
        LogWarning("none of {} documents fell into the validation split; give more documents, a larger "
                   "validation_fraction, or another split_seed",
                   info.train.documents);
      }
      return {};
    }
    int64_t documents = 0;
    int64_t empty = 0;
    for (const SourceInfo& source : info.sources) {
      documents += source.documents;
      empty += source.empty_documents;
    }
    if (documents == empty) {
      return InvalidArgument(fmt::format("the corpus is empty: {} documents, none with any text",
                                         documents));
    }
    return InvalidArgument(fmt::format("nothing to train on: of {} documents, {} are empty and {} fell "
                                       "into validation; give more documents, another split_seed, or "
                                       "a larger weight",
                                       documents, empty, info.validation.documents));
  }

  Status RunPass(size_t source_index, int64_t pass, SourceInfo* source, SplitWriter* train,
                 SplitWriter* validation, FilesDigest* digest) {
    const SourceListing& listing = listings_[source_index];
    RecordReader reader(listing, static_cast<int64_t>(source_index), options_.max_document_bytes);
    const int64_t stored_before = progress_.input_bytes_done;
    bool more = true;
    while (more) {
      if (StopRequested()) {
        return Error{ErrorCode::kCancelled, "stopped; nothing was written to the dataset's place"};
      }
      int64_t count = 0;
      int64_t bytes = 0;
      while (count < kRoundRecords && bytes < kRoundBytes) {
        if (count == static_cast<int64_t>(records_.size())) records_.emplace_back();
        TESSERA_ASSIGN(more, reader.Next(&records_[static_cast<size_t>(count)]));
        if (!more) break;
        bytes += static_cast<int64_t>(records_[static_cast<size_t>(count)].content.size());
        ++count;
      }
      EncodeRound(count, pass, options_.sources[source_index], listing);
      for (int64_t i = 0; i < count; ++i) {
        TESSERA_TRY(WriteOne(encoded_[static_cast<size_t>(i)], pass, source, train, validation));
      }
      progress_.input_bytes_done = stored_before + reader.stored_bytes();
      progress_.seconds = watch_.Seconds();
      if (progress_fn_) progress_fn_(progress_);
    }
    if (pass == 0) {
      digest->NextSource();
      for (size_t i = 0; i < listing.files.size(); ++i) {
        digest->Add(listing.files[i], reader.file_hashes()[i]);
      }
    }
    return {};
  }

  void EncodeRound(int64_t count, int64_t pass, const SourceConfig& source,
                   const SourceListing& listing) {
    if (static_cast<int64_t>(encoded_.size()) < count) encoded_.resize(static_cast<size_t>(count));
    // Documents differ in length by orders of magnitude, so threads take them one by one; which
    // thread takes which does not change the result.
    std::atomic<int64_t> next{0};
    pool_.Run([&](int /*thread*/) {
      std::vector<int32_t> ids;
      for (int64_t i = next++; i < count; i = next++) {
        RawRecord& record = records_[static_cast<size_t>(i)];
        encoded_[static_cast<size_t>(i)] = EncodeOne(
            std::move(record), pass, source, listing.files[static_cast<size_t>(record.file)], &ids);
      }
    });
  }

  Encoded EncodeOne(RawRecord record, int64_t pass, const SourceConfig& source,
                    const SourceFile& file, std::vector<int32_t>* ids) const {
    Encoded out;
    Result<Document> document = ParseRecord(std::move(record), source, file);
    if (!document.ok()) {
      out.error = document.error();
      return out;
    }
    out.identity = std::move(document->identity);
    out.bytes = static_cast<int64_t>(document->text.size());
    out.empty = document->text.empty();
    out.validation =
        InValidation(out.identity, options_.validation_fraction, options_.split_seed);
    const int64_t copies = out.validation ? 1 : CopiesOf(out.identity, source.weight);
    if (out.empty || pass >= copies) return out;
    ids->clear();
    // An exception must not leave a pool's thread.
    try {
      options_.encoder.encode(document->text, ids);
    } catch (const ErrorException& exception) {
      out.error = exception.error().WithContext(out.identity);
      return out;
    } catch (const std::exception& exception) {
      out.error = Internal(fmt::format("{}: tokenizer failed: {}", out.identity, exception.what()));
      return out;
    }
    for (const int32_t id : *ids) {
      if (id < 0 || id >= options_.encoder.vocab_size) {
        out.error = Internal(fmt::format("{}: the tokenizer gave id {} with a vocabulary of {}",
                                         out.identity, id, options_.encoder.vocab_size));
        return out;
      }
    }
    out.empty = ids->empty();
    out.token_count = static_cast<int64_t>(ids->size());
    if (!out.empty) AppendMdsTokens(*ids, element_bytes_, &out.tokens);
    return out;
  }

  Status WriteOne(const Encoded& document, int64_t pass, SourceInfo* source, SplitWriter* train,
                  SplitWriter* validation) {
    if (document.error) {
      return document.error->WithContext(fmt::format("source '{}'", source->name));
    }
    if (pass == 0) {
      ++source->documents;
      source->bytes += document.bytes;
      source->empty_documents += document.empty ? 1 : 0;
      ++progress_.documents;
    }
    if (document.tokens.empty()) return {};
    SplitInfo& split = document.validation ? source->validation : source->train;
    ++split.documents;
    split.tokens += document.token_count;
    split.bytes += document.bytes;
    progress_.tokens += document.token_count;
    return (document.validation ? validation : train)
        ->Add(source->name, document.identity, document.bytes, document.tokens,
              document.token_count);
  }

  const BuildOptions& options_;
  const std::vector<SourceListing>& listings_;
  const BuildProgressFn& progress_fn_;
  fs::path folder_;
  ThreadPool pool_;
  int element_bytes_;
  std::vector<RawRecord> records_;
  std::vector<Encoded> encoded_;
  BuildProgress progress_;
  Stopwatch watch_;
};

// The folder in which a build happens, locked against a second builder, removed unless committed.
class BuildFolder {
 public:
  explicit BuildFolder(fs::path path) : path_(std::move(path)) {}
  ~BuildFolder() {
    if (locked_) (void)RemoveTree(path_).ok();
    if (fd_ >= 0) ::close(fd_);
  }
  BuildFolder(const BuildFolder&) = delete;
  BuildFolder& operator=(const BuildFolder&) = delete;

  const fs::path& path() const { return path_; }

  Status Prepare() {
    TESSERA_TRY(MakeDirectories(path_));
    fd_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd_ < 0) return ErrnoError("cannot open folder", path_.string(), errno);
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      return Error{ErrorCode::kExists,
                   fmt::format("another process is building in '{}'; wait for it to end",
                               path_.string())};
    }
    locked_ = true;
    // What an interrupted build left.
    std::error_code code;
    for (const fs::directory_entry& entry : fs::directory_iterator(path_, code)) {
      TESSERA_TRY(RemoveTree(entry.path()));
    }
    return {};
  }

  // Puts the folder into its place; with something there, exchanges the two in one step.
  Status Commit(const fs::path& target, bool replace) {
    TESSERA_TRY(SyncDirectory(path_));
    if (!replace) {
      TESSERA_TRY(RenamePath(path_, target));
      locked_ = false;
    } else if (::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) != 0) {
      // File systems without the exchange: a crash between the two leaves the old one aside.
      const fs::path old = target.string() + ".old";
      TESSERA_TRY(RemoveTree(old));
      TESSERA_TRY(RenamePath(target, old));
      TESSERA_TRY(RenamePath(path_, target));
      locked_ = false;
      TESSERA_TRY(RemoveTree(old));
    }
    return SyncDirectory(target.parent_path());
  }

 private:
  fs::path path_;
  int fd_ = -1;
  bool locked_ = false;
};

// True when `output` already holds what the options would build.
Result<bool> IsUpToDate(const DatasetInfo& existing, const BuildOptions& options,
                        const std::vector<SourceListing>& listings) {
  const std::string wanted = OptionsFingerprint(options);
  if (existing.options_fingerprint != wanted) return false;
  if (existing.files_stat == FilesStat(listings)) return true;
  TESSERA_ASSIGN(const std::string files, HashFiles(listings));
  return existing.fingerprint == Fingerprint(wanted, files);
}

std::string Difference(const DatasetInfo& existing, const BuildOptions& options) {
  if (existing.tokenizer_fingerprint != options.encoder.fingerprint) return "another tokenizer";
  if (existing.options_fingerprint != OptionsFingerprint(options)) {
    return "other sources or options";
  }
  return "other content of the source files";
}

}  // namespace

Result<DatasetInfo> BuildDataset(const BuildOptions& options, const BuildProgressFn& progress) {
  TESSERA_TRY(CheckOptions(options));
  TESSERA_TRY(CheckEncoder(options.encoder));
  if (options.output.empty()) return InvalidArgument("the dataset's output folder is not given");
  TESSERA_ASSIGN(const std::vector<SourceListing> listings, ListAll(options.sources));
  fs::path output = options.output.lexically_normal();
  if (!output.has_filename()) output = output.parent_path();
  bool replace = false;
  if (PathExists(output)) {
    std::error_code code;
    const Result<DatasetInfo> existing = ReadDatasetInfo(output);
    if (existing.ok()) {
      TESSERA_ASSIGN(const bool same, IsUpToDate(*existing, options, listings));
      if (same) {
        DatasetInfo info = *existing;
        info.up_to_date = true;
        return info;
      }
      if (!options.overwrite) {
        return Error{ErrorCode::kExists,
                     fmt::format("'{}' holds a dataset that was built from {}; give --overwrite to "
                                 "replace it, or another folder",
                                 output.string(), Difference(*existing, options))};
      }
      replace = true;
    } else if (!fs::is_directory(output, code) || !fs::is_empty(output, code)) {
      // Never deletes what it did not write: the folder may be somebody's work.
      return Error{ErrorCode::kExists,
                   fmt::format("'{}' exists and is no dataset ({}); give another folder or remove it "
                               "yourself",
                               output.string(), existing.error().message)};
    }
  }
  BuildFolder folder(output.string() + ".building");
  TESSERA_TRY(folder.Prepare());
  Builder builder(options, listings, progress, folder.path());
  TESSERA_ASSIGN(DatasetInfo info, builder.Run());
  TESSERA_TRY(folder.Commit(output, replace));
  info.folder = output;
  return info;
}

Status VisitDocuments(const BuildOptions& options,
                      const std::function<Status(const DocumentView&)>& visit) {
  TESSERA_TRY(CheckOptions(options));
  TESSERA_ASSIGN(const std::vector<SourceListing> listings, ListAll(options.sources));
  for (size_t i = 0; i < options.sources.size(); ++i) {
    const SourceConfig& source = options.sources[i];
    RecordReader reader(listings[i], static_cast<int64_t>(i), options.max_document_bytes);
    RawRecord record;
    while (true) {
      TESSERA_ASSIGN(const bool found, reader.Next(&record));
      if (!found) break;
      const SourceFile& file = listings[i].files[static_cast<size_t>(record.file)];
      Result<Document> document = ParseRecord(std::move(record), source, file);
      if (!document.ok()) {
        return document.error().WithContext(fmt::format("source '{}'", source.name));
      }
      if (document->text.empty()) continue;
      TESSERA_TRY(visit({.source = &source,
                         .identity = document->identity,
                         .text = document->text,
                         .validation = InValidation(document->identity, options.validation_fraction,
                                                    options.split_seed)}));
    }
  }
  return {};
}

}  // namespace tessera
