// `tessera generate`: continues a prompt with a trained model, as text while it comes or as JSON.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "base/cpu_info.h"
#include "base/files.h"
#include "base/json.h"
#include "base/signals.h"
#include "base/strings.h"
#include "base/threads.h"
#include "base/time.h"
#include "checkpoint/checkpoint.h"
#include "cli/commands.h"
#include "cli/text_stream.h"
#include "model/generation.h"
#include "model/plan.h"
#include "tensor/safetensors.h"
#include "tokenizer/tokenizer.h"

namespace tessera::cli {

namespace {

// Averaged weights, where a run keeps them, are what its finished model is used with.
constexpr const char* kAverageFile = "average.safetensors";
constexpr int64_t kLargestPrompt = int64_t{1} << 28;  // bytes

struct Arguments {
  std::string model;
  std::string tokenizer;
  std::string prompt;
  std::string prompt_file;
  GenerationOptions generation;
  std::optional<uint64_t> seed;
  std::vector<std::string> stops;
  bool ignore_eos = false;
  bool json = false;
  int threads = 0;
  std::string precision = "auto";
};

struct Source {
  CheckpointInfo checkpoint;
  ModelConfig config;
  Tokenizer tokenizer;
};

Result<Tokenizer> LoadTokenizer(const Arguments& arguments, const CheckpointInfo& checkpoint) {
  if (!arguments.tokenizer.empty()) return Tokenizer::Load(arguments.tokenizer);
  if (!checkpoint.Has(kTokenizerFile)) {
    return NotFound(
        fmt::format("checkpoint '{}' holds no {}; name the one that its data was built "
                    "with: --tokenizer PATH",
                    checkpoint.folder.string(), kTokenizerFile));
  }
  return Tokenizer::Load(checkpoint.folder / kTokenizerFile);
}

Result<Source> OpenSource(const Arguments& arguments) {
  Result<CheckpointInfo> found = FindCheckpoint(arguments.model);
  if (!found.ok()) {
    Error error = found.error();
    if (error.code == ErrorCode::kNotFound) {
      error.message += "; MODEL is a checkpoint's folder or a run's, for instance runs/quickstart";
    }
    return error;
  }
  const CheckpointInfo checkpoint = std::move(found).value();
  TESSERA_TRY(VerifyCheckpoint(checkpoint));
  const std::filesystem::path config_path = checkpoint.folder / kModelConfigFile;
  TESSERA_ASSIGN(const Json json, ReadJsonFile(config_path, int64_t{1} << 20));
  TESSERA_ASSIGN(const ModelConfig config, ModelConfigFromJson(json, config_path.string()));
  TESSERA_ASSIGN(Tokenizer tokenizer, LoadTokenizer(arguments, checkpoint));
  if (tokenizer.vocab_size() > config.vocab_size) {
    return InvalidArgument(
        fmt::format("the tokenizer has {} tokens but the model only {}: this is not the tokenizer "
                    "that the model "
                    "was trained with",
                    tokenizer.vocab_size(), config.vocab_size));
  }
  return Source{checkpoint, config, std::move(tokenizer)};
}

Result<DType> ChooseDType(const std::string& precision, const CheckpointInfo& checkpoint) {
  std::string name = precision;
  if (name == "auto") {
    name = PrecisionName(Precision::kFp32);
    if (checkpoint.Has(kStateFile)) {
      TESSERA_ASSIGN(const Json state, ReadJsonFile(checkpoint.folder / kStateFile));
      name = state.value("precision", name);
    }
  }
  return name == PrecisionName(Precision::kAmpBf16) ? DType::kBf16 : DType::kF32;
}

Status LoadWeights(const CheckpointInfo& checkpoint, InferenceModel* model) {
  const char* name = checkpoint.Has(kAverageFile) ? kAverageFile : kWeightsFile;
  const std::string path = (checkpoint.folder / name).string();
  TESSERA_ASSIGN(const SafetensorsFile file, SafetensorsFile::Open(path));
  const auto parameters = model->parameters();
  for (size_t i = 0; i < parameters.size(); ++i) {
    const ParameterSpec& spec = parameters[i].spec;
    const SafetensorsEntry* entry = file.header().Find(spec.name);
    if (entry == nullptr) {
      return Corrupt(fmt::format("{}: tensor '{}' is missing, which {} calls for", path, spec.name,
                                 kModelConfigFile));
    }
    if (entry->shape != spec.shape()) {
      return Corrupt(fmt::format("{}: tensor '{}' has shape {}, but {} calls for {}", path,
                                 spec.name, FormatShape(entry->shape), kModelConfigFile,
                                 FormatShape(spec.shape())));
    }
    if (entry->dtype != DType::kF32 && entry->dtype != DType::kBf16) {
      return Unsupported(fmt::format("{}: tensor '{}' has type {}; f32 and bf16 are read", path,
                                     spec.name, DTypeName(entry->dtype)));
    }
    model->SetWeight(i, file.data(*entry).data(), entry->dtype);
  }
  return {};
}

Result<std::string> ReadPrompt(const Arguments& arguments) {
  if (arguments.prompt_file.empty()) return arguments.prompt;
  if (arguments.prompt_file != "-") return ReadFile(arguments.prompt_file, kLargestPrompt);
  std::string text;
  char piece[1 << 16];
  while (const size_t count = std::fread(piece, 1, sizeof(piece), stdin)) {
    text.append(piece, count);
    if (static_cast<int64_t>(text.size()) > kLargestPrompt) {
      return InvalidArgument(fmt::format("the prompt from standard input has more than {}",
                                         FormatBytes(kLargestPrompt)));
    }
  }
  if (std::ferror(stdin) != 0) return IoError("cannot read the prompt from standard input");
  return text;
}

Result<std::vector<int32_t>> EncodePrompt(const std::string& text, const Source& source) {
  const auto prefix = source.tokenizer.template_prefix();
  std::vector<int32_t> tokens(prefix.begin(), prefix.end());
  source.tokenizer.Encode(text, &tokens);
  if (tokens.empty()) {
    // Documents are joined by end-of-text, so after it the model begins a new one.
    const std::optional<int32_t> eos = source.tokenizer.eos_id();
    if (!eos) {
      return InvalidArgument(
          "the prompt is empty and the tokenizer has no end-of-text token to "
          "start from; give a --prompt");
    }
    tokens.push_back(*eos);
  }
  if (source.config.document_mask) {
    const auto document = LastDocument(tokens, source.tokenizer.eos_id());
    if (document.size() < tokens.size()) {
      fmt::print(stderr,
                 "note: this model's documents don't see each other (document_mask); the {} tokens "
                 "before the prompt's last end-of-text are left out\n",
                 tokens.size() - document.size());
      tokens.assign(document.begin(), document.end());
    }
  }
  const int64_t count = static_cast<int64_t>(tokens.size());
  const int64_t longest = LongestSequence(source.config);
  if (count > longest) {
    return InvalidArgument(fmt::format(
        "the prompt has {} tokens, but the model has positions for {} (max_seq_len); shorten it by "
        "{}",
        count, longest, count - longest));
  }
  if (count > source.config.max_seq_len) {
    fmt::print(stderr, "note: the prompt has {} tokens; the model was trained on sequences of {}\n",
               count, source.config.max_seq_len);
  }
  return tokens;
}

// Control characters as signs, so that a model's text can't steer the terminal. `text` is UTF-8.
std::string ForTerminal(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<uint8_t>(text[i]);
    if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7F) {
      // U+2400 + c; U+2421 for delete.
      const int sign = c == 0x7F ? 0x21 : c;
      out += fmt::format("\xE2\x90{}", static_cast<char>(0x80 + sign));
    } else if (c == 0xC2 && i + 1 < text.size() && static_cast<uint8_t>(text[i + 1]) < 0xA0) {
      out += "\xEF\xBF\xBD";  // U+0080 to U+009F are control characters too
      ++i;
    } else {
      out += text[i];
    }
  }
  return out;
}

void Print(std::string_view text, bool terminal) {
  if (text.empty()) return;
  const std::string shown = terminal ? ForTerminal(text) : std::string(text);
  std::fwrite(shown.data(), 1, shown.size(), stdout);
  std::fflush(stdout);
}

double Rate(int64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

std::string Reason(FinishReason reason, const TextStream& stream) {
  if (stream.stopped()) return "stop";
  if (reason == FinishReason::kStopped) return "interrupted";
  return std::string(FinishReasonName(reason));
}

Result<std::unique_ptr<InferenceModel>> BuildModel(const Arguments& arguments, const Source& source,
                                                   int64_t prompt_tokens, ThreadPool& pool) {
  InferenceOptions options;
  TESSERA_ASSIGN(options.dtype, ChooseDType(arguments.precision, source.checkpoint));
  if (options.dtype == DType::kBf16) options.compute = kernels::MeasuredCompute().compute;
  const int64_t longest = LongestSequence(source.config);
  options.max_length =
      prompt_tokens + std::min(arguments.generation.max_new_tokens, longest - prompt_tokens);
  const int64_t needed = InferenceModel::MemoryBytes(source.config, options, pool.num_threads());
  const int64_t available = ReadMemoryInfo().available_bytes;
  if (needed > available) {
    return OutOfMemory(fmt::format("the model needs {} for {} tokens, {} are free{}",
                                   FormatBytes(needed), options.max_length, FormatBytes(available),
                                   options.dtype == DType::kF32
                                       ? ": try --precision amp_bf16 or fewer --max-new-tokens"
                                       : ": try fewer --max-new-tokens"));
  }
  TESSERA_ASSIGN(auto model, InferenceModel::Create(source.config, options, pool));
  TESSERA_TRY(LoadWeights(source.checkpoint, model.get()));
  return model;
}

Status Generate(Arguments arguments) {
  GenerationOptions& options = arguments.generation;
  options.sampler.seed = arguments.seed ? *arguments.seed : std::random_device()();
  if (const auto errors = CheckSamplerOptions(options.sampler); !errors.empty()) {
    return InvalidArgument("--" + Join(errors, "; --"));
  }
  if (options.max_new_tokens < 1) {
    return InvalidArgument(
        fmt::format("--max-new-tokens is {}; it must be at least 1", options.max_new_tokens));
  }
  const Stopwatch load;
  TESSERA_ASSIGN(const Source source, OpenSource(arguments));
  TESSERA_ASSIGN(const std::string prompt, ReadPrompt(arguments));
  TESSERA_ASSIGN(const std::vector<int32_t> tokens, EncodePrompt(prompt, source));
  ThreadPool pool(arguments.threads);
  TESSERA_ASSIGN(const auto model,
                 BuildModel(arguments, source, static_cast<int64_t>(tokens.size()), pool));
  const double load_seconds = load.Seconds();
  options.vocab_size = source.tokenizer.vocab_size();
  if (!arguments.ignore_eos) options.stop_token = source.tokenizer.eos_id();
  if (source.config.document_mask) options.document_start = source.tokenizer.eos_id();

  const bool terminal = isatty(STDOUT_FILENO) == 1 && !arguments.json;
  const bool color = terminal && std::getenv("NO_COLOR") == nullptr;
  if (terminal) {
    if (color) fmt::print("\x1b[2m");
    TextStream shown_prompt({});
    Print(shown_prompt.Append(prompt) + shown_prompt.Finish(), true);
    if (color) fmt::print("\x1b[0m");
    std::fflush(stdout);
  }
  TextStream stream(arguments.stops);
  std::string text;
  const auto show = [&](std::string piece) {
    if (!arguments.json) Print(piece, terminal);
    text += piece;
  };
  const StopSignals signals;
  TESSERA_ASSIGN(const Generation result,
                 GenerateTokens(*model, tokens, options, [&](std::optional<int32_t> token) {
                   if (token && !source.tokenizer.IsSpecial(*token)) {
                     show(stream.Append(source.tokenizer.TokenBytes(*token)));
                   }
                   return !StopRequested() && !stream.stopped();
                 }));
  show(stream.Finish());

  const std::string reason = Reason(result.reason, stream);
  const int64_t prompt_count = static_cast<int64_t>(tokens.size());
  const double prefill_rate = Rate(prompt_count, result.prefill_seconds);
  const double decode_rate = Rate(result.decoded_tokens, result.decode_seconds);
  if (arguments.json) {
    Json json = {{"model", source.checkpoint.folder.string()},
                 {"step", source.checkpoint.step},
                 {"prompt", prompt},
                 {"text", text},
                 {"prompt_tokens", prompt_count},
                 {"new_tokens", result.tokens.size()},
                 {"tokens", result.tokens},
                 {"finish_reason", reason},
                 {"seed", options.sampler.seed},
                 {"load_seconds", load_seconds},
                 {"prefill_tokens_per_s", prefill_rate},
                 {"decode_tokens_per_s", decode_rate}};
    if (stream.stopped()) json["stop"] = stream.stop();
    fmt::print("{}\n", JsonText(json, 2));
    return {};
  }
  if (terminal || !text.ends_with('\n')) fmt::print("\n");
  std::fflush(stdout);
  fmt::print(
      stderr,
      "{} prompt tokens at {}/s, {} new tokens at {}/s, loaded in {:.2f}s, seed {}, end: {}\n",
      prompt_count, FormatCount(prefill_rate), result.tokens.size(), FormatCount(decode_rate),
      load_seconds, options.sampler.seed, reason);
  return {};
}

}  // namespace

void RegisterGenerate(Command app, Outcome& outcome) {
  auto arguments = std::make_shared<Arguments>();
  GenerationOptions& generation = arguments->generation;
  SamplerOptions& sampler = generation.sampler;
  sampler.temperature = 0.8;
  sampler.top_p = 0.95;
  Command command = app.AddCommand("generate", "Continue a prompt with a trained model.");
  command
      .AddOption("model", arguments->model,
                 "A checkpoint's folder, or a run's folder: its newest checkpoint")
      .Required()
      .TypeName("MODEL");
  Option prompt = command.AddOption("-p,--prompt", arguments->prompt,
                                   "The text to continue; without one a new document begins");
  command.AddOption("--prompt-file", arguments->prompt_file, "The text from a file; - is stdin")
      .Excludes(prompt);
  command.AddOption("-n,--max-new-tokens", generation.max_new_tokens, "Longest answer")
      .ShowDefault();
  command.AddOption("--temperature", sampler.temperature, "0: always the most probable token")
      .ShowDefault();
  command.AddOption("--top-k", sampler.top_k, "Only the K most probable tokens; 0: all")
      .ShowDefault();
  command.AddOption("--top-p", sampler.top_p, "Only the most probable tokens of this much mass")
      .ShowDefault();
  command
      .AddOption("--min-p", sampler.min_p,
                 "Only tokens of at least this fraction of the largest probability")
      .ShowDefault();
  command
      .AddOption("--repetition-penalty", sampler.repetition_penalty,
                 "Over 1 makes recent tokens less likely")
      .ShowDefault();
  command
      .AddOption("--repetition-window", sampler.repetition_window,
                 "How many tokens are recent; -1: all")
      .ShowDefault();
  command.AddOption("--seed", arguments->seed, "Same seed, same text; default: a new one, printed");
  command.AddOption("--stop", arguments->stops, "Ends the answer, is not shown; repeatable")
      .TypeName("TEXT")
      .OnePerName();
  command.AddFlag("--ignore-eos", arguments->ignore_eos, "Go on after end-of-text");
  command.AddOption("--precision", arguments->precision, "auto (as trained), fp32 or amp_bf16")
      .OneOf({"auto", "fp32", "amp_bf16"})
      .ShowDefault();
  command.AddOption("--tokenizer", arguments->tokenizer,
                    "tokenizer.json, when the checkpoint holds none");
  command.AddOption("--threads", arguments->threads, "0: every core").Range(0, 1024).ShowDefault();
  command.AddFlag("--json", arguments->json, "One JSON object at the end instead of the text");
  command.SetFooter(
      "Examples:\n"
      "  tessera generate runs/quickstart --prompt \"The function returns\"\n"
      "  tessera generate runs/quickstart/ckpt-00000400ba -p \"Once\" --temperature 0\n"
      "  tessera generate runs/quickstart --prompt-file question.txt --stop Question: -n 64 "
      "--json\n"
      "Details: docs/generate.md");
  command.SetCallback([arguments, &outcome] { outcome.status = Generate(*arguments); });
}

}  // namespace tessera::cli
