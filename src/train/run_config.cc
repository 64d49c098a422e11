#include "train/run_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/files.h"
#include "base/strings.h"
#include "train/pair_tables.h"
#include "train/run_file_reader.h"
#include "train/run_schema.h"

namespace tessera {

namespace {

constexpr size_t kMostShownProblems = 50;

// Every path that the schema knows, keys and sections.
struct KnownPaths {
  std::map<std::string, const RunKey*, std::less<>> keys;
  std::set<std::string, std::less<>> sections;
  std::map<std::string, std::vector<std::string>, std::less<>> children;  // of sections

  KnownPaths() {
    for (const RunKey& key : RunSchema()) {
      keys[key.path] = &key;
      std::string parent;
      for (std::string_view part : Split(key.path, '.')) {
        std::vector<std::string>& siblings = children[parent];
        if (std::find(siblings.begin(), siblings.end(), part) == siblings.end()) {
          siblings.emplace_back(part);
        }
        parent += (parent.empty() ? "" : ".") + std::string(part);
        if (parent != key.path) sections.insert(parent);
      }
    }
  }
};

const KnownPaths& Paths() {
  static const KnownPaths paths;
  return paths;
}

std::string JoinPath(std::string_view section, std::string_view key) {
  return section.empty() ? std::string(key) : fmt::format("{}.{}", section, key);
}

std::string LastPart(std::string_view path) {
  const size_t dot = path.rfind('.');
  return std::string(dot == std::string_view::npos ? path : path.substr(dot + 1));
}

// What to write instead of an unknown key: known words of others, a likely typing error here, the
// same word elsewhere, or the keys that there are.
std::string UnknownKeyProblem(const std::string& section, const std::string& key) {
  const std::string path = JoinPath(section, key);
  if (const auto hint = HintForForeignKey(path)) return "unknown key; " + *hint;
  const auto siblings = Paths().children.find(section);
  if (siblings != Paths().children.end()) {
    if (const auto nearest = SuggestKey(key, siblings->second)) {
      return fmt::format("unknown key (did you mean '{}'?)", JoinPath(section, *nearest));
    }
  }
  for (const auto& [known, unused] : Paths().keys) {
    if (LastPart(known) == key) return fmt::format("unknown key (did you mean '{}'?)", known);
  }
  std::vector<std::string> all;
  for (const auto& [known, unused] : Paths().keys) all.push_back(known);
  if (const auto nearest = SuggestKey(path, all)) {
    return fmt::format("unknown key (did you mean '{}'?)", *nearest);
  }
  if (siblings == Paths().children.end() || section.empty()) {
    return "unknown key; docs/run-file.md lists all keys";
  }
  return fmt::format("unknown key; '{}' has {}", section, Join(siblings->second, ", "));
}

class RunFileReader {
 public:
  RunFileReader(std::string_view source, const std::vector<std::string>& overrides)
      : source_(source), overrides_(overrides) {
    reading_.config = DefaultRunConfig();
  }

  Result<RunConfig> Read(std::string_view text) {
    TESSERA_ASSIGN(root_, ParseYaml(text, source_, &reading_.problems));
    if (root_.is_null()) root_.kind = YamlValue::Kind::kMap;
    if (root_.kind != YamlValue::Kind::kMap) {
      return InvalidArgument(
          fmt::format("{}: must hold key: value lines, found {}", source_, root_.Describe()));
    }
    for (const std::string& text_of_override : overrides_) {
      ApplyOverride(text_of_override, &root_, &reading_.problems);
    }
    CollectKeys(root_, "");
    for (const RunKey& key : RunSchema()) {
      const auto it = given_.find(key.path);
      if (it == given_.end()) continue;
      const YamlValue& value = *it->second;
      if (value.is_null() && !key.null_means_none) {
        if (key.path != "model.name") given_.erase(it);
        continue;
      }
      if (const auto problem = key.read(reading_, value)) reading_.Fail(value, key.path, *problem);
    }
    FillDefaults();
    // What depends on several keys is only checked once each of them is right by itself.
    if (reading_.problems.empty()) CheckTogether();
    if (!reading_.problems.empty()) return Report();
    return std::move(reading_.config);
  }

 private:
  RunConfig& config() { return reading_.config; }
  bool Given(std::string_view path) const { return given_.find(path) != given_.end(); }

  // Fails at the place where the first of `paths` that the file sets stands.
  void Fail(const std::vector<std::string>& paths, std::string_view message) {
    for (const std::string& path : paths) {
      if (const auto it = given_.find(path); it != given_.end()) {
        return reading_.Fail(*it->second, path, message);
      }
    }
    reading_.Fail(YamlValue{}, paths.front(), message);
  }

  void CollectKeys(const YamlValue& map, const std::string& section) {
    for (const YamlMember& member : map.members) {
      const std::string path = JoinPath(section, member.key);
      if (Paths().keys.count(path) > 0) {
        given_[path] = &member.value;
      } else if (Paths().sections.count(path) > 0) {
        if (member.value.kind == YamlValue::Kind::kMap) {
          CollectKeys(member.value, path);
        } else if (!member.value.is_null()) {
          reading_.Fail(
              member.value, path,
              Expected(member.value, "a section with " + Join(Paths().children.at(path), ", ")));
        }
      } else {
        const bool shown = reading_.problems.size() < kMostShownProblems;
        reading_.Fail(member.value, path.substr(0, 200),
                      shown ? UnknownKeyProblem(section, member.key) : "unknown key");
      }
    }
  }

  void FillDefaults() {
    RunConfig& c = config();
    if (c.run_name.empty()) c.run_name = std::filesystem::path(source_).stem().string();
    if (c.save_folder.empty()) c.save_folder = "runs/{run_name}";
    for (std::string* folder : {&c.save_folder, &c.load_path, &c.data.build_folder}) {
      for (size_t at; (at = folder->find("{run_name}")) != std::string::npos;) {
        folder->replace(at, std::string_view("{run_name}").size(), c.run_name);
      }
    }
    if (c.data.build_folder.empty()) c.data.build_folder = c.save_folder + "/dataset";
    if (!Given("data.shuffle_seed")) {
      // mosaicml-streaming's default, for its orders.
      c.data.shuffle_seed = c.data.streaming.shuffle_algo == "native" ? c.seed : 9176;
    }

    ModelConfig& m = c.model;
    if (c.max_seq_len == 0) c.max_seq_len = m.max_seq_len;
    if (!Given("model.max_seq_len") && c.model_preset.empty()) m.max_seq_len = c.max_seq_len;
    const bool new_vocabulary = !c.tokenizer.name.empty() || c.tokenizer.train.vocab_size > 0;
    if (!Given("model.vocab_size") && new_vocabulary) m.vocab_size = 0;
    const bool width_given =
        Given("model.ffn_config.ffn_hidden_size") || Given("model.expansion_ratio");
    if (m.family == "llama" && !width_given && (c.model_preset.empty() || Given("model.d_model"))) {
      // Three matrices then cost what two of 4 d_model do.
      m.ffn_hidden = (m.d_model * 8 / 3 + 63) / 64 * 64;
    }
    if (m.n_heads > 0) {
      m.n_kv_heads = m.kv_heads();
      if (m.head_size == 0 && m.d_model % m.n_heads == 0) m.head_size = m.d_model / m.n_heads;
    }
    m.ffn_hidden = m.ffn_dim();
  }

  void CheckTogether() {
    CheckRequired();
    if (!reading_.problems.empty()) return;
    CheckModel();
    CheckBatches();
    CheckData();
    const RunConfig& c = config();
    const Result<Schedule> schedule = Schedule::Create(c.scheduler, c.max_duration);
    if (!schedule.ok()) Fail({"scheduler.t_warmup", "scheduler.name"}, schedule.error().message);
    if (c.load_weights_only && c.load_path.empty()) {
      Fail({"load_weights_only"}, "is set, but load_path does not say from where");
    }
    if (c.init_from_token_pairs) {
      const std::string why = WhyNotPairTables(c.model);
      if (!why.empty()) Fail({"init_from_token_pairs"}, why);
      if (!c.load_path.empty()) {
        Fail({"init_from_token_pairs"}, "load_path brings the weights already; remove one of them");
      }
      if (!c.data.streams.empty()) {
        Fail({"init_from_token_pairs"},
             "reads the whole training split before the first step, which streams are not there for; "
             "use data.sources or data.dataset");
      }
    }
    if (c.autoresume && c.save_weights_only) {
      Fail({"autoresume"},
           "can't go on from checkpoints without optimizer state: remove "
           "save_weights_only");
    }
    if (c.autoresume && c.save_overwrite) {
      Fail({"autoresume"}, "goes on from what save_overwrite replaces: remove one of them");
    }
    if (c.run_name.find('/') != std::string::npos) {
      Fail({"run_name"}, "is a part of file names and can't hold '/'");
    }
  }

  void CheckRequired() {
    const RunConfig& c = config();
    if (c.model.family.empty()) {
      Fail({"model.name"},
           "is missing; set model.name (mpt_causal_lm, gpt2_causal_lm, "
           "llama_causal_lm, modern_causal_lm) or model.preset (gpt2-124m ...)");
      return;
    }
    for (const auto& [path, value] :
         {std::pair<const char*, int64_t>{"model.d_model", c.model.d_model},
          {"model.n_heads", c.model.n_heads},
          {"model.n_layers", c.model.n_layers}}) {
      if (value == 0) Fail({path}, "is missing; it has no default without model.preset");
    }
    if (c.max_duration.is_zero())
      Fail({"max_duration"}, "is missing; for example 2000ba or 180sec");
    if (c.global_train_batch_size == 0)
      Fail({"global_train_batch_size"}, "is missing; for example 64");
    if (c.max_seq_len == 0) Fail({"max_seq_len"}, "is missing; for example 1024");
  }

  void CheckModel() {
    const RunConfig& c = config();
    const std::set<std::string_view> positions = {"model.attn_config.alibi",
                                                  "model.attn_config.rope"};
    size_t on = 0;
    for (std::string_view path : positions) {
      const auto it = given_.find(path);
      if (it != given_.end() && YamlBool(*it->second).value_or(false)) ++on;
    }
    if (on > 1) Fail({"model.attn_config.alibi"}, "alibi and rope are both on; switch one off");
    const auto learned = given_.find("model.learned_pos_emb");
    if (learned != given_.end() && on > 0 && YamlBool(*learned->second).value_or(false)) {
      // llm-foundry drops the learned positions silently.
      Fail({"model.learned_pos_emb"}, "alibi or rope is on as well; set this to false");
    }
    if (Given("model.expansion_ratio") && Given("model.ffn_config.ffn_hidden_size")) {
      Fail({"model.expansion_ratio"}, "model.ffn_config.ffn_hidden_size is set too; remove one");
    }
    if (Given("model.attn_config.qk_ln") && Given("model.attn_config.qk_norm")) {
      Fail({"model.attn_config.qk_ln"}, "model.attn_config.qk_norm is set too; remove one");
    }
    if (c.max_seq_len > c.model.max_seq_len) {
      Fail({"max_seq_len"}, fmt::format("{} is longer than model.max_seq_len {}", c.max_seq_len,
                                        c.model.max_seq_len));
    }
    ModelConfig checked = c.model;
    if (checked.vocab_size == 0)
      checked.vocab_size = std::max<int64_t>(c.tokenizer.train.vocab_size, 257);
    for (const std::string& problem : CheckModelConfig(checked)) {
      Fail(KeysNamedIn(problem), problem);
    }
    const int64_t trained = c.tokenizer.train.vocab_size;
    if (trained > 0 && c.model.vocab_size > 0 && c.model.vocab_size < trained) {
      Fail({"model.vocab_size"}, fmt::format("{} has no room for the {} words of "
                                             "tokenizer.train.vocab_size",
                                             c.model.vocab_size, trained));
    }
  }

  // The keys of the model that a message of CheckModelConfig speaks of, those from the command line
  // first: they are the likelier mistake.
  std::vector<std::string> KeysNamedIn(std::string_view problem) const {
    std::vector<std::string> keys;
    for (std::string_view word : Split(problem, ' ')) {
      while (!word.empty() &&
             std::string_view("(),;").find(word.front()) != std::string_view::npos) {
        word.remove_prefix(1);
      }
      for (const char* section : {"model.", "model.attn_config."}) {
        const auto it = given_.find(section + std::string(word));
        if (it == given_.end()) continue;
        const bool from_override = !it->second->override_text.empty();
        keys.insert(from_override ? keys.begin() : keys.end(), it->first);
      }
    }
    keys.insert(keys.end(), {"model.preset", "model.name"});
    return keys;
  }

  void CheckBatches() {
    const RunConfig& c = config();
    CheckBatch("global_train_batch_size", c.global_train_batch_size);
    CheckGrowth("batch_size_growth", c.batch_size_growth);
    CheckGrowth("sequence_length_growth", c.sequence_length_growth);
    for (const GrowthStage& stage : c.batch_size_growth) {
      CheckBatch("batch_size_growth", stage.value);
    }
    for (const GrowthStage& stage : c.sequence_length_growth) {
      if (stage.value > c.model.max_seq_len) {
        Fail({"sequence_length_growth"},
             fmt::format("a stage of {} tokens is longer than model.max_seq_len {}", stage.value,
                         c.model.max_seq_len));
      }
    }
  }

  void CheckBatch(const std::string& path, int64_t batch) {
    const RunConfig& c = config();
    const int64_t microbatch = std::max<int64_t>(c.device_train_microbatch_size, 1);
    if (batch % (c.virtual_ranks * microbatch) == 0) return;
    const int64_t part = c.virtual_ranks * microbatch;
    Fail({path},
         c.device_train_microbatch_size == 0
             ? fmt::format("{} is not a multiple of virtual_ranks {}", batch, c.virtual_ranks)
             : fmt::format("{} is not a multiple of virtual_ranks {} times "
                           "device_train_microbatch_size {} ({}); try {}",
                           batch, c.virtual_ranks, microbatch, part,
                           (batch + part - 1) / part * part));
  }

  void CheckGrowth(const std::string& path, const std::vector<GrowthStage>& stages) {
    double last = 0;
    for (const GrowthStage& stage : stages) {
      const Duration until = ResolveFraction(stage.until, config().max_duration);
      const Duration first = ResolveFraction(stages.front().until, config().max_duration);
      if (until.unit != first.unit) {
        return Fail({path},
                    fmt::format("stages end at {} and {}: all need one unit",
                                FormatDuration(stages.front().until), FormatDuration(stage.until)));
      }
      if (until.value <= last) {
        return Fail({path}, fmt::format("the stage until {} does not end after the one before it",
                                        FormatDuration(stage.until)));
      }
      last = until.value;
    }
  }

  void CheckData() {
    const RunConfig& c = config();
    if (!c.data.sources.empty() && !c.data.dataset.empty()) {
      Fail({"data.dataset"},
           "data.sources is set too: a dataset is built from sources or exists "
           "already; remove one");
    }
    if (!c.tokenizer.name.empty() && c.tokenizer.train.vocab_size > 0) {
      Fail({"tokenizer.name"},
           "tokenizer.train is set too: a tokenizer is trained here or exists "
           "already; remove one");
    }
    if (!c.data.dataset.empty() && c.tokenizer.train.vocab_size > 0) {
      Fail({"tokenizer.train.vocab_size"},
           "a dataset's tokens were made with its own tokenizer; train one from data.sources");
    }
    if (!c.data.sources.empty() && c.tokenizer.name.empty() && c.tokenizer.train.vocab_size == 0) {
      Fail({"data.sources"},
           "text needs a tokenizer: set tokenizer.train.vocab_size (4096 ...) or "
           "tokenizer.name");
    }
    if (c.tokenizer.train.special_tokens.empty()) {
      Fail({"tokenizer.train.special_tokens"}, "needs at least one: the first ends a document");
    }
    for (const auto& tokens = c.tokenizer.train.special_tokens; const std::string& token : tokens) {
      if (token.empty() || std::count(tokens.begin(), tokens.end(), token) > 1) {
        Fail({"tokenizer.train.special_tokens"},
             fmt::format("'{}' is empty or stands there twice", token));
        break;
      }
    }
    if (!c.data.streams.empty() && (!c.data.sources.empty() || !c.data.dataset.empty())) {
      Fail({"data.streams"}, "data.sources or data.dataset is set too: remove one");
    }
    if (!c.data.streams.empty() && c.tokenizer.train.vocab_size > 0) {
      Fail({"tokenizer.train.vocab_size"}, "streams hold tokens or text of their own; set tokenizer.name");
    }
    if (c.data.eval_streams.size() > 1) {
      Fail({"data.eval_streams"}, "there is more than one; evaluation takes a single stream");
    }
    if (c.data.streams.empty() && !c.data.eval_streams.empty()) {
      Fail({"data.eval_streams"}, "goes with data.streams");
    }
    if (c.compare_compressors && c.data.sources.empty()) {
      Fail({"compare_compressors"}, "needs data.sources: a dataset does not keep the text");
    }
  }

  Error Report() {
    std::vector<RunFileProblem>& problems = reading_.problems;
    std::stable_sort(problems.begin(), problems.end(),
                     [](const RunFileProblem& a, const RunFileProblem& b) {
                       const auto rank = [](const RunFileProblem& p) {
                         return p.line > 0 ? 0 : p.override_text.empty() ? 1 : 2;
                       };
                       return std::pair(rank(a), a.line) < std::pair(rank(b), b.line);
                     });
    std::string message = problems.size() == 1
                              ? std::string("the run file has an error:")
                              : fmt::format("the run file has {} errors:", problems.size());
    for (size_t i = 0; i < problems.size() && i < kMostShownProblems; ++i) {
      const RunFileProblem& problem = problems[i];
      if (!problem.override_text.empty()) {
        message += fmt::format("\n  override '{}': {}", problem.override_text.substr(0, 200),
                               problem.message);
      } else if (problem.line > 0) {
        message += fmt::format("\n  {}:{}: {}", source_, problem.line, problem.message);
      } else {
        message += fmt::format("\n  {}: {}", source_, problem.message);
      }
    }
    if (problems.size() > kMostShownProblems) {
      message += fmt::format("\n  and {} more", problems.size() - kMostShownProblems);
    }
    return InvalidArgument(std::move(message));
  }

  std::string source_;
  const std::vector<std::string>& overrides_;
  YamlValue root_;
  RunFileReading reading_;
  std::map<std::string, const YamlValue*, std::less<>> given_;
};

}  // namespace

RunConfig DefaultRunConfig() {
  RunConfig config;
  config.model.family.clear();  // none chosen
  config.model.max_seq_len = 0;
  config.save_interval = {1000, TimeUnit::kBatch};
  config.tokenizer.train.special_tokens = {"<|endoftext|>"};
  config.optimizer.lr = 1e-3;
  config.optimizer.weight_decay = 1e-5;
  return config;
}

int64_t GrowthValue(const std::vector<GrowthStage>& stages, int64_t final_value,
                    const Progress& progress, const Duration& max_duration) {
  for (const GrowthStage& stage : stages) {
    if (!HasReached(progress, ResolveFraction(stage.until, max_duration))) return stage.value;
  }
  return final_value;
}

Result<RunConfig> ParseRunFile(std::string_view text, std::string_view source,
                               const std::vector<std::string>& overrides) {
  return RunFileReader(source, overrides).Read(text);
}

Result<RunConfig> ReadRunFile(const std::filesystem::path& path,
                              const std::vector<std::string>& overrides) {
  const Result<std::string> text = ReadFile(path, kMaxRunFileBytes);
  if (!text.ok()) {
    Error error = text.error().WithContext("run file");
    if (error.code == ErrorCode::kNotFound) error.message += "; recipes/ holds complete ones";
    return error;
  }
  return ParseRunFile(*text, path.string(), overrides);
}

Status CheckTrainable(const RunConfig& config) {
  if (config.data.sources.empty() && config.data.dataset.empty() && config.data.streams.empty()) {
    return InvalidArgument(
        "the run file names nothing to train on: set data.sources.NAME=PATH (files, a folder or a "
        "pattern), data.dataset=FOLDER or data.streams.NAME=URL");
  }
  return {};
}

PlanOptions PlanOptionsFor(const RunConfig& config, int64_t microbatch, int num_threads,
                           kernels::Compute compute) {
  PlanOptions options;
  options.sequence_length = config.max_seq_len;
  options.microbatch = microbatch;
  options.global_batch = config.global_train_batch_size;
  options.virtual_ranks = config.virtual_ranks;
  options.precision = config.precision;
  options.recompute = config.recompute;
  options.optimizer = config.optimizer.rule;
  options.weight_average = config.weight_average.enabled;
  options.loss_chunk_tokens = config.loss_chunk_tokens;
  options.compute = compute;
  options.num_threads = num_threads;
  options.training = true;
  return options;
}

}  // namespace tessera
