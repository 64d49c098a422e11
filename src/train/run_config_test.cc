#include "train/run_config.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/test_folder.h"
#include "train/run_schema.h"

namespace tessera {
namespace {

constexpr const char* kSmall = R"(run_name: small
max_seq_len: 128
max_duration: 100ba
global_train_batch_size: 16
model: {name: gpt2_causal_lm, d_model: 64, n_heads: 4, n_layers: 2, vocab_size: 512}
)";

std::string Small(std::string_view more = "") { return std::string(kSmall) + std::string(more); }

RunConfig Read(const std::string& text, const std::vector<std::string>& overrides = {}) {
  Result<RunConfig> config = ParseRunFile(text, "run.yaml", overrides);
  EXPECT_TRUE(config.ok()) << config.error().message;
  return config.ok() ? *config : RunConfig{};
}

std::string Problem(const std::string& text, const std::vector<std::string>& overrides = {}) {
  const Result<RunConfig> config = ParseRunFile(text, "run.yaml", overrides);
  EXPECT_FALSE(config.ok()) << text;
  if (config.ok()) return "";
  EXPECT_EQ(config.error().code, ErrorCode::kInvalidArgument);
  return config.error().message;
}

void ExpectSays(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' is not in: " << message;
  }
}

TEST(RunConfig, FillsDefaults) {
  const RunConfig c = Read(Small());
  EXPECT_EQ(c.run_name, "small");
  EXPECT_EQ(c.save_folder, "runs/small");
  EXPECT_EQ(c.data.build_folder, "runs/small/dataset");
  EXPECT_EQ(c.seed, 17u);
  EXPECT_EQ(c.data.shuffle_seed, 17u);
  EXPECT_EQ(c.device_train_microbatch_size, 0);
  EXPECT_EQ(c.save_interval, (Duration{1000, TimeUnit::kBatch}));
  EXPECT_EQ(c.model.max_seq_len, 128);
  EXPECT_EQ(c.model.ffn_hidden, 256);
  EXPECT_EQ(c.model.head_size, 16);
  EXPECT_EQ(c.optimizer.rule, UpdateRule::kAdamW);
  EXPECT_EQ(c.optimizer.decay_form, DecayForm::kDecoupledFromLr);
  EXPECT_FALSE(CheckTrainable(c).ok());
  EXPECT_EQ(Read("max_seq_len: 8\nmax_duration: 1ba\nglobal_train_batch_size: 1\n"
                 "model: {preset: gpt2-tiny}")
                .run_name,
            "run");
}

TEST(RunConfig, ReadsEverySection) {
  const RunConfig c = Read(R"(
run_name: all
seed: 3
max_seq_len: 256
max_duration: 3min
global_train_batch_size: 32
device_train_microbatch_size: 4
precision: fp32
eval_interval: 0.25dur
eval_first: true
save_folder: out/{run_name}/x
memory_limit: 1.5 GiB
virtual_ranks: 2
recompute: block
model:
  name: llama_causal_lm
  d_model: 768
  n_heads: 12
  n_layers: 4
  norm_type: low_precision_rmsnorm
  final_logit_softcapping: 30
  attn_config: {kv_n_heads: 4, clip_qkv: 6, sliding_window_size: 64, rope_theta: 5.0e5}
tokenizer: {train: {vocab_size: 1000, pre_tokenizer: llama3}}
optimizer:
  name: muon
  lr: 2e-3
  betas: [0.8, 0.9]
  muon: {lr: 0.03}
scheduler: {name: warmup_stable_decay, t_warmup: 10ba, t_decay: 0.4dur, decay_shape: sqrt}
algorithms:
  gradient_clipping: {clipping_type: norm, clipping_threshold: 0.5}
  label_smoothing: {smoothing: 0.1}
z_loss: 1.0e-4
data:
  document_mask: true
  validation_fraction: 0.1
  sources:
    b: docs/*.md
    a: {paths: [x, y], format: jsonl, text_field: body, license: MIT, weight: 0.5}
batch_size_growth: [{until: 0.1dur, global_train_batch_size: 8}, {until: 60sec, global_train_batch_size: 16}]
sequence_length_growth: [{until: 10sec, max_seq_len: 64}]
weight_average: {enabled: true, decay: 0.99, start: 0.5dur}
samples: {prompts: [Hello, "12"], temperature: 0}
callbacks: {speed_monitor: {window_size: 10}, lr_monitor: {}, memory_monitor: }
loggers: {console: false, jsonl: {filename: m.jsonl}}
)");
  EXPECT_EQ(c.max_duration, (Duration{180, TimeUnit::kSecond}));
  EXPECT_EQ(c.save_folder, "out/all/x");
  EXPECT_EQ(c.memory_limit, int64_t{3} << 29);
  EXPECT_EQ(c.model.family, "llama");
  EXPECT_EQ(c.model.vocab_size, 0);     // from the tokenizer
  EXPECT_EQ(c.model.ffn_hidden, 2048);  // 8/3 of 768, a multiple of 64
  EXPECT_EQ(c.model.n_kv_heads, 4);
  EXPECT_TRUE(c.model.low_precision_norm);
  EXPECT_EQ(c.model.sliding_window, 64);
  EXPECT_EQ(c.model.rope_theta, 5e5);
  EXPECT_TRUE(c.model.document_mask);
  EXPECT_EQ(c.optimizer.rule, UpdateRule::kMuon);
  EXPECT_EQ(c.optimizer.beta2, 0.9);
  EXPECT_EQ(c.optimizer.muon_lr, 0.03);
  EXPECT_EQ(c.scheduler.kind, ScheduleKind::kWarmupStableDecay);
  EXPECT_EQ(c.gradient_clipping, 0.5);
  EXPECT_EQ(c.label_smoothing, 0.1);
  ASSERT_EQ(c.data.sources.size(), 2u);
  EXPECT_EQ(c.data.sources[0].name, "a");
  EXPECT_EQ(c.data.sources[0].paths, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(c.data.sources[0].format, SourceFormat::kJsonl);
  EXPECT_EQ(c.data.sources[0].weight, 0.5);
  EXPECT_EQ(c.data.sources[1].paths, (std::vector<std::string>{"docs/*.md"}));
  EXPECT_EQ(c.speed_window, 10);
  EXPECT_FALSE(c.loggers.console);
  EXPECT_EQ(c.samples.prompts.size(), 2u);
  EXPECT_TRUE(CheckTrainable(c).ok());

  EXPECT_EQ(GrowthValue(c.batch_size_growth, 32, {.seconds = 17}, c.max_duration), 8);
  EXPECT_EQ(GrowthValue(c.batch_size_growth, 32, {.seconds = 18}, c.max_duration), 16);
  EXPECT_EQ(GrowthValue(c.batch_size_growth, 32, {.seconds = 60}, c.max_duration), 32);

  // The resolved file is the same run.
  const std::string yaml = RunConfigToYaml(c);
  const RunConfig again = Read(yaml);
  EXPECT_EQ(RunConfigToYaml(again), yaml);
  EXPECT_EQ(RunConfigToJson(again), RunConfigToJson(c));
  const RunConfig from_json = Read(RunConfigToJson(c).dump(1));
  EXPECT_EQ(RunConfigToJson(from_json), RunConfigToJson(c));
  EXPECT_EQ(ModelConfigToJson(again.model), ModelConfigToJson(c.model));
  EXPECT_EQ(again.optimizer, c.optimizer);
  EXPECT_EQ(again.scheduler, c.scheduler);
  EXPECT_EQ(again.batch_size_growth, c.batch_size_growth);
  EXPECT_EQ(again.weight_average, c.weight_average);
  EXPECT_EQ(again.samples, c.samples);
  EXPECT_EQ(again.tokenizer, c.tokenizer);
}

TEST(RunConfig, OddTextsSurviveTheResolvedFile) {
  RunConfig c = Read(Small());
  c.run_name = "a: b # c";
  c.save_folder = "x y/\"quoted\"\ttab";
  c.samples.prompts = {"",     "true", "12", "- x", "line\nbreak", "Grüße 🙂",
                       "null", "*a",   "{",  "5ba"};
  const RunConfig again = Read(RunConfigToYaml(c));
  EXPECT_EQ(again.run_name, c.run_name);
  EXPECT_EQ(again.save_folder, c.save_folder);
  EXPECT_EQ(again.samples.prompts, c.samples.prompts);
}

TEST(RunConfig, EveryKeyIsWrittenUnderItsPath) {
  const RunConfig config = Read(Small());
  const OrderedJson tree = OrderedJson::parse(RunConfigToJson(config).dump());
  for (const RunKey& key : RunSchema()) {
    EXPECT_FALSE(key.doc.empty()) << key.path;
    EXPECT_FALSE(key.type.empty()) << key.path;
    if (!key.write) continue;
    const OrderedJson value = key.write(config);
    if (value.is_null()) continue;
    const std::string pointer = "/" + [&] {
      std::string text = key.path;
      for (char& c : text) c = c == '.' ? '/' : c;
      return text;
    }();
    EXPECT_EQ(tree.at(OrderedJson::json_pointer(pointer)), value) << key.path;
  }
}

TEST(RunConfig, ReportsAllErrorsAtOnceWithLines) {
  const std::string message = Problem(R"(max_seq_len: many
max_duration: 100
globl_train_batch_size: 16
precision: bf16
model:
  name: gpt_causal_lm
  n_layer: 2
  attn_config: {attn_impl: flash, kv_n_heads: 2.5}
optimizer: adamw
lr: 3
eval_first: yes
data:
  sources: {a: {pth: x}, "b c": y, d: [], e: {path: p, weight: -1}}
seed: 1
seed: 2
)",
                                      {"save_interval=5", "model.vocab_size=-3"});
  ExpectSays(
      message,
      {"run.yaml:1: max_seq_len: found 'many'",
       "run.yaml:2: max_duration: '100' has no unit",
       "run.yaml:3: globl_train_batch_size: unknown key (did you mean 'global_train_batch_size'?)",
       "run.yaml:4: precision: found 'bf16'",
       "did you mean 'amp_bf16'",
       "run.yaml:6: model.name: found 'gpt_causal_lm'",
       "run.yaml:7: model.n_layer: unknown key (did you mean 'model.n_layers'?)",
       "run.yaml:8: model.attn_config.attn_impl: unknown key; remove it",
       "run.yaml:8: model.attn_config.kv_n_heads: found '2.5'",
       "run.yaml:9: optimizer: found 'adamw'; allowed is a section with name, lr",
       "run.yaml:10: lr: unknown key (did you mean 'optimizer.lr'?)",
       "run.yaml:11: eval_first: found 'yes'; allowed is true or false",
       "run.yaml:13: data.sources.a.pth: unknown key; a source has path",
       "did you mean 'path'",
       "'b c' can't name a source",
       "data.sources.d: the list of paths is empty",
       "data.sources.e.weight: found '-1'",
       "run.yaml:15: the key 'seed' stands here a second time; it was set in line 14",
       "override 'save_interval=5': save_interval: '5' has no unit",
       "override 'model.vocab_size=-3': model.vocab_size: found '-3'",
       "the run file has 18 errors"});
}

TEST(RunConfig, NamesWhatIsMissing) {
  ExpectSays(Problem(""), {"model.name: is missing"});
  ExpectSays(Problem("model: {name: mpt_causal_lm}"),
             {"run.yaml: model.d_model: is missing", "model.n_heads", "model.n_layers",
              "max_duration: is missing", "global_train_batch_size: is missing",
              "max_seq_len: is missing"});
  ExpectSays(Problem("- a\n- b\n"), {"must hold key: value lines"});
}

TEST(RunConfig, ChecksWhatGoesTogether) {
  const struct {
    const char* more;
    std::vector<std::string> overrides;
    std::vector<std::string> says;
  } cases[] = {
      {"virtual_ranks: 3\n", {}, {"run.yaml:4: global_train_batch_size: 16 is not a multiple of"}},
      {"", {"device_train_microbatch_size=5"}, {"try 20"}},
      {"", {"model.n_heads=3"}, {"override 'model.n_heads=3'", "not a multiple of n_heads"}},
      {"", {"max_seq_len=256", "model.max_seq_len=128"}, {"longer than model.max_seq_len 128"}},
      {"", {"model.attn_config.alibi=true", "model.attn_config.rope=true"}, {"both on"}},
      {"", {"model.learned_pos_emb=true", "model.attn_config.rope=true"}, {"set this to false"}},
      {"", {"model.expansion_ratio=4", "model.ffn_config.ffn_hidden_size=8"}, {"remove one"}},
      {"",
       {"scheduler.name=cosine_with_warmup", "scheduler.t_warmup=1ep"},
       {"needs both in one unit"}},
      {"", {"scheduler.name=inv_sqrt_with_warmup"}, {"scheduler.name", "t_scale must be set"}},
      {"", {"data.dataset=x", "data.sources.a=b", "tokenizer.name=t"}, {"data.sources is set too"}},
      {"", {"data.sources.a=b"}, {"text needs a tokenizer"}},
      {"", {"tokenizer.name=t", "tokenizer.train.vocab_size=300"}, {"tokenizer.train is set too"}},
      {"", {"tokenizer.train.vocab_size=600"}, {"no room for the 600 words"}},
      {"", {"model.preset=mpt-10m"}, {"is a shape of mpt_causal_lm, but model.name is gpt2"}},
      {"", {"load_weights_only=true"}, {"load_path does not say"}},
      {"", {"autoresume=true", "save_overwrite=true"}, {"remove one of them"}},
      {"", {"init_from_token_pairs=true"}, {"needs branches that start at zero"}},
      {"",
       {"init_from_token_pairs=true", "model.name=modern_causal_lm", "load_path=x"},
       {"load_path brings the weights already"}},
      {"",
       {"batch_size_growth=[{until: 50ba, global_train_batch_size: 8}, {until: 40ba, "
        "global_train_batch_size: 8}]"},
       {"does not end after"}},
      {"",
       {"batch_size_growth=[{until: 5ba, global_train_batch_size: 8}, {until: 1ep, "
        "global_train_batch_size: 8}]"},
       {"need one unit"}},
      {"",
       {"batch_size_growth=[{until: 5, global_train_batch_size: x, more: 1}, 3]"},
       {"batch_size_growth[0]", "batch_size_growth[1]"}},
      {"",
       {"sequence_length_growth=[{until: 5ba, max_seq_len: 4096}]"},
       {"longer than model.max_seq"}},
      {"", {"optimizer.betas=[0.9]"}, {"two numbers"}},
      {"", {"optimizer.betas=[0.9, 1.0]"}, {"found '1.0'"}},
      {"", {"memory_limit=12 apples"}, {"found '12 apples'; allowed is a size"}},
      {"", {"seed='5'"}, {"in quotation marks"}},
      {"", {"optimizer.lr=nan"}, {"allowed is a number"}},
      {"", {"compare_compressors=true"}, {"needs data.sources"}},
      {"", {"run_name=a/b"}, {"can't hold '/'"}},
      {"", {"train_loader.name=text"}, {"describe the text under data.sources"}},
      {"", {"model.preset=llama-7b"}, {"did you mean"}},
  };
  for (const auto& c : cases) ExpectSays(Problem(Small(c.more), c.overrides), c.says);
}

TEST(RunConfig, OverridesReachSourcesAndPresets) {
  const RunConfig c = Read(Small("data: {sources: {a: x, b: y}}\ntokenizer: {name: t.json}\n"),
                           {"data.sources.mine=docs/**/*.md", "data.sources.b=null", "seed=5",
                            "max_duration=20ba", "data.sources.a={path: x, weight: 2}"});
  ASSERT_EQ(c.data.sources.size(), 2u);
  EXPECT_EQ(c.data.sources[0].weight, 2.0);
  EXPECT_EQ(c.data.sources[1].name, "mine");
  EXPECT_EQ(c.data.shuffle_seed, 5u);
  EXPECT_EQ(c.max_duration.value, 20);
  EXPECT_EQ(c.model.vocab_size, 512);  // the file says so

  const std::string preset =
      "max_seq_len: 128\nmax_duration: 1ep\nglobal_train_batch_size: 8\nmodel: {preset: "
      "llama-125m}\n";
  EXPECT_EQ(Read(preset).model.vocab_size, 50304);
  EXPECT_EQ(Read(preset).model.max_seq_len, 2048);
  EXPECT_EQ(Read(preset, {"tokenizer.train.vocab_size=500"}).model.vocab_size, 0);
  EXPECT_EQ(Read(preset, {"model.d_model=384"}).model.ffn_hidden, 1024);
  EXPECT_EQ(RunConfigToYaml(Read(RunConfigToYaml(Read(preset)))), RunConfigToYaml(Read(preset)));
}

TEST(RunConfig, MptMeansWhatItMeansInLlmFoundry) {
  const std::string file =
      "max_seq_len: 2048\nmax_duration: 4800ba\nglobal_train_batch_size: 256\n"
      "model: {name: mpt_causal_lm, d_model: 768, n_heads: 12, n_layers: 12, "
      "vocab_size: 50368}\n";
  // The published 125m file: learned positions, biases, tied head.
  EXPECT_EQ(CountParameters(Read(file).model), 125311488);
}

TEST(RunConfig, ReadsAFileAndSaysWhenThereIsNone) {
  const TestFolder folder;
  const auto path = folder.Write("my run.yaml", kSmall);
  ASSERT_TRUE(ReadRunFile(path).ok());
  const Result<RunConfig> missing = ReadRunFile(folder / "none.yaml");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  ExpectSays(missing.error().message, {"none.yaml"});
}

TEST(RunConfig, PlanOptionsFollowTheFile) {
  const RunConfig c = Read(Small("recompute: norm\nprecision: fp32\nvirtual_ranks: 4\n"));
  const PlanOptions options = PlanOptionsFor(c, 2, 3, kernels::Compute::kF32);
  EXPECT_EQ(options.sequence_length, 128);
  EXPECT_EQ(options.microbatch, 2);
  EXPECT_EQ(options.global_batch, 16);
  EXPECT_EQ(options.virtual_ranks, 4);
  EXPECT_EQ(options.recompute, Recompute::kNorm);
  EXPECT_EQ(options.precision, Precision::kFp32);
  EXPECT_EQ(options.num_threads, 3);
}

// Each of these once took seconds or gave a message as large as the file.
TEST(RunConfig, HostileTextGivesAShortMessage) {
  const std::string large(500000, 'x');
  std::string many;
  for (int i = 0; i < 5000; ++i) many += fmt::format("max_seq_lem{}: {}\n", i, i);
  for (const std::string& text :
       {large + ": 1\n", "max_duration: " + large + "\n", "precision: " + large + "\n",
        "data: {sources: {a: {? " + large + " : 1}}}\n", many}) {
    EXPECT_LT(Problem(text).size(), 20000u) << text.substr(0, 40);
  }
}

// Every cut and many changed bytes of a full file: an error or a run, never a crash.
TEST(RunConfig, SurvivesDamage) {
  const std::string good =
      RunConfigToYaml(Read(Small("data: {sources: {a: x}}\ntokenizer: {name: t}\n")));
  for (size_t cut = 0; cut < good.size(); cut += 31) {
    (void)ParseRunFile(good.substr(0, cut), "t").ok();
  }
  const std::string bytes("\0\n[{&*-:'\"#|>!%@`\xff", 18);
  for (size_t at = 0; at < good.size(); at += 13) {
    std::string damaged = good;
    damaged[at] = bytes[at / 13 % bytes.size()];
    (void)ParseRunFile(damaged, "t").ok();
  }
}

}  // namespace
}  // namespace tessera
