#include "train/run_data.h"

#include <fmt/format.h>

#include <memory>
#include <vector>

#include "base/files.h"
#include "base/hash.h"
#include "base/progress.h"
#include "base/signals.h"
#include "base/strings.h"
#include "base/time.h"
#include "data/build.h"
#include "data/shard_cache.h"
#include "data/source.h"
#include "store/worker_pool.h"
#include "tokenizer/bpe_trainer.h"

namespace tessera {

namespace fs = std::filesystem;

namespace {

constexpr const char* kTrainingRecord = "training.json";
// Documents are handed to the trainer in rounds of this many bytes, which bounds the memory.
constexpr size_t kRoundBytes = size_t{8} << 20;

BuildOptions BuildOptionsFor(const RunConfig& config) {
  BuildOptions options;
  options.output = config.data.build_folder;
  options.sources = config.data.sources;
  options.validation_fraction = config.data.validation_fraction;
  options.split_seed = config.data.split_seed;
  options.threads = config.threads;
  options.shard_bytes = config.data.shard_bytes;
  options.max_document_bytes = config.data.max_document_bytes;
  // The folder is a cache of this run's own making; BuildDataset still refuses any other folder.
  options.overwrite = true;
  return options;
}

fs::path TokenizerFolder(const RunConfig& config) {
  fs::path folder = fs::path(config.data.build_folder).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();
  return folder.string() + ".tokenizer";
}

// What the trained tokenizer depends on; equal text means an equal tokenizer.
Result<std::string> TrainingFingerprint(const RunConfig& config) {
  const TokenizerTraining& train = config.tokenizer.train;
  Json all = {{"version", 1},
              {"vocab_size", train.vocab_size},
              {"special_tokens", train.special_tokens},
              {"pre_tokenizer", train.pre_tokenizer},
              {"max_bytes", train.max_bytes},
              {"validation_fraction", config.data.validation_fraction},
              {"split_seed", config.data.split_seed}};
  Sha256 files;
  for (const SourceConfig& source : config.data.sources) {
    files.Update(fmt::format("source {} {} {} {}\n", Xxh3(source.name),
                             SourceFormatName(source.format), Xxh3(source.text_field),
                             Xxh3(source.id_field)));
    TESSERA_ASSIGN(const SourceListing listing, ListSource(source));
    for (const SourceFile& file : listing.files) {
      files.Update(fmt::format("{} {} {} {}\n", file.identity.size(), file.identity, file.bytes,
                               file.mtime_ns));
    }
  }
  all["files"] = files.FinishHex();
  return Sha256Hex(JsonText(all));
}

Result<Tokenizer> TrainTokenizer(const RunConfig& config, const PrepareOptions& options) {
  const TokenizerTraining& train = config.tokenizer.train;
  BpeTrainOptions bpe;
  bpe.vocab_size = train.vocab_size;
  bpe.special_tokens = train.special_tokens;
  const auto pre_tokenizer = PreTokenizerFromName(train.pre_tokenizer);
  if (!pre_tokenizer) {
    return InvalidArgument(
        fmt::format("tokenizer.train.pre_tokenizer '{}' is not known", train.pre_tokenizer));
  }
  bpe.pre_tokenizer = *pre_tokenizer;
  bpe.num_threads = config.threads;
  const ProgressMode mode = options.show_progress ? ProgressMode::kAuto : ProgressMode::kSilent;
  LiveLine line(mode);
  bpe.progress = [&line](const BpeProgress& progress) {
    if (!line.live() || !line.Due()) return;
    line.Show(
        fmt::format("tokenizer: {} of {} merges", progress.merges_done, progress.merges_total));
  };
  BpeTrainer trainer(std::move(bpe));

  std::vector<std::string> round;
  size_t round_bytes = 0;
  int64_t taken = 0;
  int64_t documents = 0;
  const auto flush = [&] {
    const std::vector<std::string_view> views(round.begin(), round.end());
    trainer.Add(views);
    round.clear();
    round_bytes = 0;
    if (line.live() && line.Due()) {
      line.Show(fmt::format("tokenizer: counting, {} of text", FormatBytes(taken)));
    }
  };
  TESSERA_TRY(VisitDocuments(BuildOptionsFor(config), [&](const DocumentView& document) -> Status {
    if (StopRequested()) {
      return Error{.code = ErrorCode::kCancelled, .message = "stopped while reading the sources"};
    }
    ++documents;
    if (document.validation || (train.max_bytes > 0 && taken >= train.max_bytes)) return {};
    round.emplace_back(document.text);
    round_bytes += document.text.size();
    taken += static_cast<int64_t>(document.text.size());
    if (round_bytes >= kRoundBytes) flush();
    return {};
  }));
  flush();
  if (taken == 0) {
    std::vector<std::string> names;
    for (const SourceConfig& source : config.data.sources) {
      names.push_back(fmt::format("'{}' ({})", source.name, Join(source.paths, ", ")));
    }
    return InvalidArgument(fmt::format(
        "the corpus is empty: {} documents, of which the training split holds no text to train a "
        "tokenizer on; check data.sources {} and data.validation_fraction {}",
        documents, Join(names, ", "), config.data.validation_fraction));
  }
  return trainer.Train();
}

Result<Tokenizer> TrainedTokenizer(const RunConfig& config, const PrepareOptions& options,
                                   fs::path* file) {
  const fs::path folder = TokenizerFolder(config);
  *file = folder / "tokenizer.json";
  TESSERA_ASSIGN(const std::string fingerprint, TrainingFingerprint(config));
  if (PathExists(folder / kTrainingRecord) && PathExists(*file)) {
    const Result<Json> record = ReadJsonFile(folder / kTrainingRecord);
    if (record.ok() && record->value("made_from", "") == fingerprint) {
      TESSERA_ASSIGN(Tokenizer tokenizer, Tokenizer::Load(*file));
      if (record->value("tokenizer", "") == tokenizer.fingerprint()) {
        options.say(fmt::format("tokenizer: {} tokens, up to date", tokenizer.vocab_size()));
        return tokenizer;
      }
    }
  }
  const Stopwatch watch;
  TESSERA_ASSIGN(const Tokenizer tokenizer, TrainTokenizer(config, options));
  TESSERA_TRY(MakeDirectories(folder));
  TESSERA_TRY(tokenizer.Save(*file));
  const Json record = {{"made_from", fingerprint}, {"tokenizer", tokenizer.fingerprint()}};
  TESSERA_TRY(WriteFileAtomic(folder / kTrainingRecord, JsonText(record, 2) + "\n"));
  options.say(fmt::format("tokenizer: {} tokens trained in {}", tokenizer.vocab_size(),
                          tessera::FormatDuration(watch.Seconds())));
  return tokenizer;
}

Result<TokenEncoder> EncoderFor(const Tokenizer& tokenizer, fs::path file) {
  const std::optional<int32_t> eos = tokenizer.eos_id();
  if (!eos) {
    return InvalidArgument(fmt::format(
        "the tokenizer '{}' has no end-of-text token (<|endoftext|>, </s> or another customary "
        "name), which separates documents",
        file.string()));
  }
  TokenEncoder encoder;
  encoder.encode = [tokenizer](std::string_view text, std::vector<int32_t>* ids) {
    tokenizer.Encode(text, ids);
  };
  encoder.eos_id = *eos;
  encoder.vocab_size = tokenizer.vocab_size();
  encoder.fingerprint = tokenizer.fingerprint();
  encoder.file = std::move(file);
  return encoder;
}

std::string DescribeDataset(const DatasetInfo& info) {
  return fmt::format("{} documents, {} tokens for training, {} for validation",
                     info.train.documents + info.validation.documents,
                     FormatCount(static_cast<double>(info.train.tokens)),
                     FormatCount(static_cast<double>(info.validation.tokens)));
}

Result<RunData> FromSources(const RunConfig& config, const PrepareOptions& options) {
  RunData data;
  fs::path tokenizer_file;
  if (config.tokenizer.train.vocab_size > 0) {
    TESSERA_ASSIGN(data.tokenizer, TrainedTokenizer(config, options, &tokenizer_file));
  } else {
    tokenizer_file = config.tokenizer.name;
    if (fs::is_directory(tokenizer_file)) tokenizer_file /= "tokenizer.json";
    TESSERA_ASSIGN(data.tokenizer, Tokenizer::Load(tokenizer_file));
    options.say(fmt::format("tokenizer: {} tokens from '{}'", data.tokenizer->vocab_size(),
                            tokenizer_file.string()));
  }
  BuildOptions build = BuildOptionsFor(config);
  TESSERA_ASSIGN(build.encoder, EncoderFor(*data.tokenizer, tokenizer_file));
  if (const fs::path parent = build.output.parent_path(); !parent.empty()) {
    TESSERA_TRY(MakeDirectories(parent));
  }
  const Stopwatch watch;
  // Made at the first report, so that nothing is drawn when the dataset is up to date.
  std::unique_ptr<ProgressMeter> meter;
  TESSERA_ASSIGN(data.dataset, BuildDataset(build, [&](const BuildProgress& progress) {
                   if (!options.show_progress) return;
                   if (!meter) {
                     meter = std::make_unique<ProgressMeter>(
                         "dataset", ProgressOptions{.total = progress.input_bytes_total,
                                                    .unit = ProgressUnit::kBytes,
                                                    .noun = ""});
                   }
                   meter->Update(progress.input_bytes_done);
                 }));
  meter.reset();
  options.say(data.dataset.up_to_date
                  ? fmt::format("dataset: {}, up to date", DescribeDataset(data.dataset))
                  : fmt::format("dataset: {}, built in {}", DescribeDataset(data.dataset),
                                tessera::FormatDuration(watch.Seconds())));
  return data;
}

Result<RunData> FromDataset(const RunConfig& config, const PrepareOptions& options) {
  RunData data;
  const fs::path folder = config.data.dataset;
  Result<DatasetInfo> info = ReadDatasetInfo(folder);
  if (info.ok()) {
    data.dataset = std::move(info).value();
    options.say(fmt::format("dataset: {}", DescribeDataset(data.dataset)));
  } else if (info.error().code == ErrorCode::kNotFound && PathExists(folder)) {
    data.foreign = true;
    data.dataset.folder = folder;
    options.say(fmt::format("dataset: MDS folder '{}'", folder.string()));
  } else {
    return info.error();
  }
  fs::path tokenizer_file = config.tokenizer.name;
  if (tokenizer_file.empty()) tokenizer_file = data.dataset.tokenizer_file();
  if (!config.tokenizer.name.empty() || PathExists(tokenizer_file)) {
    TESSERA_ASSIGN(data.tokenizer, Tokenizer::Load(tokenizer_file));
  }
  if (data.tokenizer && !data.foreign &&
      data.tokenizer->fingerprint() != data.dataset.tokenizer_fingerprint) {
    return InvalidArgument(fmt::format(
        "the dataset '{}' was built with another tokenizer than '{}': leave tokenizer.name out to "
        "take the dataset's own",
        folder.string(), tokenizer_file.string()));
  }
  return data;
}

// Only what describes the streams is fetched here; their shards come while training needs them.
Result<RunData> FromStreams(const RunConfig& config, const PrepareOptions& options) {
  RunData data;
  data.foreign = true;
  Sha256 identity;
  int64_t samples = 0;
  for (const StreamOptions& stream : config.data.streams) {
    TESSERA_ASSIGN(const std::unique_ptr<ShardCache> cache, ShardCache::Open(stream));
    TESSERA_ASSIGN(const std::string index, ReadFile(cache->folder() / "index.json"));
    identity.Update(fmt::format("{} {} {} {} {}\n", Xxh3(stream.name), Sha256Hex(index),
                                stream.weight.proportion.value_or(-1), stream.weight.repeat.value_or(-1),
                                stream.weight.choose.value_or(-1)));
    samples += cache->index().samples();
    const Result<DatasetInfo> info = ReadDatasetInfo(cache->folder() / "..");
    if (!info.ok() || stream.split.empty()) continue;
    if (data.vocab_size > 0 && data.dataset.tokenizer_fingerprint != info->tokenizer_fingerprint) {
      return InvalidArgument(fmt::format("stream '{}' was tokenized with another tokenizer than '{}'",
                                         stream.name, config.data.streams.front().name));
    }
    data.vocab_size = info->vocab_size;
    data.dataset.tokenizer_fingerprint = info->tokenizer_fingerprint;
    data.dataset.eos_id = info->eos_id;
    const fs::path tokenizer = fs::path(cache->folder()).parent_path() / "tokenizer.json";
    if (config.tokenizer.name.empty() && !data.tokenizer && PathExists(tokenizer)) {
      TESSERA_ASSIGN(data.tokenizer, Tokenizer::Load(tokenizer));
    }
  }
  data.dataset.fingerprint = identity.FinishHex();
  if (!config.tokenizer.name.empty()) {
    fs::path file = config.tokenizer.name;
    if (fs::is_directory(file)) file /= "tokenizer.json";
    TESSERA_ASSIGN(data.tokenizer, Tokenizer::Load(file));
    if (data.vocab_size > 0 && data.tokenizer->fingerprint() != data.dataset.tokenizer_fingerprint) {
      return InvalidArgument(fmt::format(
          "the streams were tokenized with another tokenizer than '{}': leave tokenizer.name out",
          file.string()));
    }
  }
  if (data.vocab_size == 0 && data.tokenizer) data.vocab_size = data.tokenizer->vocab_size();
  options.say(fmt::format("streams: {} with {} stored samples", config.data.streams.size(),
                          FormatCount(static_cast<double>(samples))));
  for (const StreamOptions& stream : config.data.eval_streams) {
    TESSERA_ASSIGN(data.validation_cache, FetchStream(stream, options));
    data.validation_folder = data.validation_cache->folder();
  }
  return data;
}

}  // namespace

Result<std::unique_ptr<ShardCache>> FetchStream(const StreamOptions& stream,
                                                const PrepareOptions& options) {
  constexpr int kAtOnce = 8;
  TESSERA_ASSIGN(std::unique_ptr<ShardCache> cache, ShardCache::Open(stream));
  const int64_t shards = static_cast<int64_t>(cache->index().shards.size());
  std::unique_ptr<ProgressMeter> meter;
  if (options.show_progress && cache->remote() && shards > kAtOnce) {
    meter = std::make_unique<ProgressMeter>(fmt::format("fetching '{}'", stream.name),
                                            ProgressOptions{.total = shards, .noun = "shards"});
  }
  WorkerPool workers(kAtOnce);
  TESSERA_TRY(workers.ForEach(shards, [&](int64_t shard) {
    if (StopRequested()) {
      return Status(Error{.code = ErrorCode::kCancelled, .message = "stopped while fetching a stream"});
    }
    const Status fetched = cache->Fetch(shard);
    if (fetched.ok() && meter) meter->Add(1);
    return fetched;
  }));
  return cache;
}

Result<RunData> PrepareRunData(const RunConfig& config, const PrepareOptions& options) {
  if (!config.data.streams.empty()) return FromStreams(config, options);
  if (config.data.dataset.empty() && config.data.sources.empty()) {
    return InvalidArgument("the run file names no data: set data.sources, data.dataset or data.streams");
  }
  Result<RunData> prepared =
      config.data.dataset.empty() ? FromSources(config, options) : FromDataset(config, options);
  if (!prepared.ok()) return prepared;
  RunData data = std::move(prepared).value();
  if (data.foreign) {
    // llm-foundry's converters name the splits so; a folder with its own index is the split itself.
    const fs::path folder = data.dataset.folder;
    data.train_folder = PathExists(folder / kTrainFolder) ? folder / kTrainFolder : folder;
    for (const char* name : {kValidationFolder, "val"}) {
      if (PathExists(folder / name / "index.json")) data.validation_folder = folder / name;
    }
    data.vocab_size = data.tokenizer ? data.tokenizer->vocab_size() : 0;
  } else {
    data.train_folder = data.dataset.train_folder();
    if (data.dataset.validation.documents > 0) {
      data.validation_folder = data.dataset.validation_folder();
    }
    data.vocab_size = data.dataset.vocab_size;
    if (data.dataset.train.tokens == 0) {
      return InvalidArgument(
          fmt::format("the dataset '{}' has no training text: its sources hold {} documents",
                      data.dataset.folder.string(),
                      data.dataset.train.documents + data.dataset.validation.documents));
    }
  }
  return data;
}

Status SetVocabSize(ModelConfig* model, int64_t vocab_size) {
  if (model->vocab_size == 0) model->vocab_size = vocab_size;
  if (model->vocab_size == 0) {
    return InvalidArgument("the vocabulary's size is not known: set model.vocab_size");
  }
  if (model->vocab_size < vocab_size) {
    return InvalidArgument(fmt::format(
        "model.vocab_size {} is smaller than the tokenizer's vocabulary of {}: set it to at least "
        "{}, or leave it out",
        model->vocab_size, vocab_size, vocab_size));
  }
  return {};
}

}  // namespace tessera
