// `tessera tokenizer train|encode|decode|info`.
#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "base/files.h"
#include "base/json.h"
#include "base/progress.h"
#include "base/strings.h"
#include "base/time.h"
#include "cli/commands.h"
#include "tokenizer/bpe_trainer.h"
#include "tokenizer/tokenizer.h"

namespace tessera::cli {
namespace {

constexpr int64_t kMaxIds = int64_t{1} << 40;

struct TrainFlags {
  std::vector<std::string> files;
  std::string output;
  int64_t vocab_size = 32768;
  std::string pre_tokenizer = "gpt2";
  std::vector<std::string> special_tokens = {"<|endoftext|>"};
  int64_t min_frequency = 1;
  int threads = 0;
  bool json = false;
};

struct TextFlags {
  std::string tokenizer;
  std::string input = "-";
  bool as_text = false;
  bool skip_special = false;
  bool pieces = false;
  bool json = false;
};

Result<std::string> ReadInput(const std::string& path) {
  if (path != "-") return ReadFile(path);
  return std::string(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
}

// Keys and values of a tokenizer that `info` and `train` report.
Json Describe(const Tokenizer& tokenizer) {
  Json json = {{"vocab_size", tokenizer.vocab_size()},
               {"merges", tokenizer.merge_count()},
               {"pre_tokenizer", PreTokenizerName(tokenizer.pre_tokenizer())},
               {"normalizer", tokenizer.normalizer() == Normalizer::kNfc ? "nfc" : "none"},
               {"ignore_merges", tokenizer.ignore_merges()},
               {"added_tokens", tokenizer.added_tokens().size()},
               {"fingerprint", tokenizer.fingerprint()}};
  json["eos_id"] = tokenizer.eos_id() ? Json(*tokenizer.eos_id()) : Json();
  return json;
}

// Where the tokenizer goes: into a folder where the name ends with a slash or is one's, which is
// made where it is missing. Before the work, so that a wrong place costs none.
Result<std::filesystem::path> PrepareOutput(const std::string& output) {
  std::filesystem::path path = output;
  std::error_code code;
  if (!path.has_filename() || std::filesystem::is_directory(path, code)) path /= "tokenizer.json";
  if (path.has_parent_path()) TESSERA_TRY(MakeDirectories(path.parent_path()));
  return path;
}

Status Train(const TrainFlags& flags) {
  const auto kind = PreTokenizerFromName(flags.pre_tokenizer);
  if (!kind) {
    return InvalidArgument(
        fmt::format("--pre-tokenizer '{}' is not one of gpt2, llama3, qwen2, gpt2_digits",
                    flags.pre_tokenizer));
  }
  std::vector<std::string> paths;
  for (const std::string& pattern : flags.files) {
    TESSERA_ASSIGN(const std::vector<std::string> found, ExpandFiles(pattern));
    paths.insert(paths.end(), found.begin(), found.end());
  }
  TESSERA_ASSIGN(const std::filesystem::path output, PrepareOutput(flags.output));
  const ProgressMode mode = flags.json ? ProgressMode::kSilent : ProgressMode::kAuto;
  LiveLine line(mode);
  BpeTrainOptions options{.vocab_size = flags.vocab_size,
                          .special_tokens = flags.special_tokens,
                          .pre_tokenizer = *kind,
                          .min_frequency = flags.min_frequency,
                          .num_threads = flags.threads};
  Stopwatch merge_watch;
  options.progress = [&](const BpeProgress& progress) {
    if (!line.Due() || progress.merges_total == 0) return;
    const double seconds = merge_watch.Seconds();
    const auto done = static_cast<double>(progress.merges_done);
    const auto total = static_cast<double>(progress.merges_total);
    line.Show(fmt::format("merges {:.0f}% | {} of {} | {} left", 100 * done / total,
                          FormatCount(done), FormatCount(total),
                          FormatDuration(done > 0 ? seconds * (total - done) / done : 0)));
  };
  const Stopwatch watch;
  BpeTrainer trainer(std::move(options));
  // Files are counted in batches, so that the corpus need not fit in memory.
  constexpr int64_t kBatchBytes = int64_t{64} << 20;
  std::vector<std::string> texts;
  int64_t batch_bytes = 0;
  const auto count_batch = [&] {
    const std::vector<std::string_view> views(texts.begin(), texts.end());
    trainer.Add(views);
    texts.clear();
    batch_bytes = 0;
  };
  for (size_t i = 0; i < paths.size(); ++i) {
    TESSERA_ASSIGN(std::string text, ReadFile(paths[i]));
    batch_bytes += static_cast<int64_t>(text.size());
    texts.push_back(std::move(text));
    if (batch_bytes >= kBatchBytes) count_batch();
    if (line.Due()) {
      line.Show(fmt::format("counting {:.0f}% | {} of {} files | {}",
                            100.0 * static_cast<double>(i + 1) / static_cast<double>(paths.size()),
                            i + 1, paths.size(), FormatBytes(trainer.bytes_seen() + batch_bytes)));
    }
  }
  count_batch();
  const double count_seconds = watch.Seconds();
  merge_watch = Stopwatch();
  TESSERA_ASSIGN(const Tokenizer tokenizer, trainer.Train());
  const double seconds = watch.Seconds();
  TESSERA_TRY(tokenizer.Save(output));
  if (flags.json) {
    Json json = Describe(tokenizer);
    json["output"] = output.string();
    json["files"] = paths.size();
    json["bytes"] = trainer.bytes_seen();
    json["count_seconds"] = count_seconds;
    json["train_seconds"] = seconds;
    fmt::print("{}\n", JsonText(json, 2));
  } else {
    line.Print(fmt::format("{}: {} tokens from {} files, {}, in {}", output.string(),
                           tokenizer.vocab_size(), paths.size(), FormatBytes(trainer.bytes_seen()),
                           FormatDuration(seconds)));
  }
  return {};
}

Status Encode(const TextFlags& flags) {
  TESSERA_ASSIGN(const Tokenizer tokenizer, Tokenizer::Load(flags.tokenizer));
  TESSERA_ASSIGN(const std::string text, ReadInput(flags.input));
  const std::vector<int32_t> ids =
      tokenizer.Encode(text, flags.as_text ? SpecialTokens::kAsText : SpecialTokens::kParse);
  if (flags.json) {
    Json json = {{"ids", ids}, {"tokens", ids.size()}, {"bytes", text.size()}};
    if (flags.pieces) {
      for (const int32_t id : ids) json["pieces"].push_back(std::string(tokenizer.TokenBytes(id)));
    }
    // A token may be a part of a character; its bytes are shown as U+FFFD then.
    fmt::print("{}\n", JsonText(json));
    return {};
  }
  std::string out;
  for (const int32_t id : ids) {
    if (flags.pieces) {
      out += fmt::format("{}\t{}\n", id, JsonText(Json(std::string(tokenizer.TokenBytes(id)))));
    } else {
      out += fmt::format("{}{}", out.empty() ? "" : " ", id);
    }
  }
  if (!flags.pieces) out += '\n';
  std::fwrite(out.data(), 1, out.size(), stdout);
  return {};
}

Status Decode(const TextFlags& flags) {
  TESSERA_ASSIGN(const Tokenizer tokenizer, Tokenizer::Load(flags.tokenizer));
  TESSERA_ASSIGN(std::string text, ReadInput(flags.input));
  for (char& c : text) {
    if (c == ',' || c == '[' || c == ']' || c == '\n' || c == '\t' || c == '\r') c = ' ';
  }
  std::vector<int32_t> ids;
  for (const std::string_view word : Split(text, ' ')) {
    if (word.empty()) continue;
    const auto id = ParseInt(word);
    if (!id || *id < 0 || *id >= tokenizer.vocab_size() || *id > kMaxIds) {
      return InvalidArgument(fmt::format("{}: '{}' is not an id in 0..{}", flags.input, word,
                                         tokenizer.vocab_size() - 1));
    }
    ids.push_back(static_cast<int32_t>(*id));
  }
  const std::string out = tokenizer.Decode(ids, flags.skip_special);
  if (flags.json) {
    fmt::print("{}\n", JsonText(Json{{"text", out}}));
  } else {
    std::fwrite(out.data(), 1, out.size(), stdout);
  }
  return {};
}

Status Info(const TextFlags& flags) {
  TESSERA_ASSIGN(const Tokenizer tokenizer, Tokenizer::Load(flags.tokenizer));
  Json json = Describe(tokenizer);
  if (flags.json) {
    json["special_tokens"] = Json::array();
    for (const AddedToken& token : tokenizer.added_tokens()) {
      if (token.special) {
        json["special_tokens"].push_back({{"id", token.id}, {"content", token.content}});
      }
    }
    fmt::print("{}\n", JsonText(json, 2));
    return {};
  }
  for (const char* key : {"vocab_size", "merges", "pre_tokenizer", "normalizer", "ignore_merges",
                          "added_tokens", "eos_id", "fingerprint"}) {
    fmt::print("{:<14} {}\n", key,
               json[key].is_string() ? json[key].get<std::string>() : JsonText(json[key]));
  }
  return {};
}

void AddTextFlags(Command command, const std::shared_ptr<TextFlags>& flags, bool has_input) {
  command.AddOption("tokenizer", flags->tokenizer, "tokenizer.json, or a folder that holds it")
      .Required();
  if (has_input) command.AddOption("input", flags->input, "File, or - for standard input");
  command.AddFlag("--json", flags->json, "Print JSON");
}

}  // namespace

void RegisterTokenizer(Command app, Outcome& outcome) {
  Command group =
      app.AddCommand("tokenizer", "Train a byte-level BPE tokenizer, encode and decode text");
  group.RequireCommand();

  auto train = std::make_shared<TrainFlags>();
  Command command = group.AddCommand("train", "Learn a vocabulary from text files");
  command.AddOption("files", train->files, "Files, folders or patterns; each file a document")
      .Required();
  command.AddOption("-o,--output", train->output, "The tokenizer.json to write, or its folder")
      .Required();
  command
      .AddOption("--vocab-size", train->vocab_size, "Special tokens, 256 bytes and merges together")
      .ShowDefault();
  command.AddOption("--pre-tokenizer", train->pre_tokenizer, "gpt2, llama3, qwen2 or gpt2_digits")
      .ShowDefault();
  command
      .AddOption("--special", train->special_tokens,
                 "Special tokens, which take the first ids; may be given several times")
      .ShowDefault();
  command.AddOption("--min-frequency", train->min_frequency, "Pairs that are rarer are not merged")
      .ShowDefault();
  command.AddOption("--threads", train->threads, "0: every core").Range(0, 1024).ShowDefault();
  command.AddFlag("--json", train->json, "Print JSON");
  command.SetFooter(
      "Example:\n  tessera tokenizer train 'docs/**/*.rst' --vocab-size 16384 -o tokenizer.json");
  command.SetCallback([train, &outcome] { outcome.status = Train(*train); });

  auto text = std::make_shared<TextFlags>();
  command = group.AddCommand("encode", "Text to token ids");
  AddTextFlags(command, text, true);
  command.AddFlag("--as-text", text->as_text,
                  "Special tokens inside the text are encoded as plain text");
  command.AddFlag("--pieces", text->pieces, "Print one token a line, with its text");
  command.SetFooter(
      "Example:\n  echo 'Hello there' | tessera tokenizer encode tokenizer.json --pieces");
  command.SetCallback([text, &outcome] { outcome.status = Encode(*text); });

  command = group.AddCommand("decode", "Token ids to text");
  AddTextFlags(command, text, true);
  command.AddFlag("--skip-special", text->skip_special, "Leave special tokens out");
  command.SetFooter("Example:\n  echo '17 254 9' | tessera tokenizer decode tokenizer.json");
  command.SetCallback([text, &outcome] { outcome.status = Decode(*text); });

  command = group.AddCommand("info", "What a tokenizer is made of");
  AddTextFlags(command, text, false);
  command.SetFooter("Example:\n  tessera tokenizer info tokenizer.json --json");
  command.SetCallback([text, &outcome] { outcome.status = Info(*text); });
}

}  // namespace tessera::cli
