// `tessera bench generate`: the rate of prompts beside the best matrix product of the run and those
// right before and after, and of single tokens beside the rate at which the same threads read memory.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "base/cpu_info.h"
#include "base/json.h"
#include "base/median.h"
#include "base/rng.h"
#include "base/strings.h"
#include "base/threads.h"
#include "base/time.h"
#include "cli/commands.h"
#include "cli/machine_probe.h"
#include "cli/product_limit.h"
#include "kernels/gemm.h"
#include "kernels/isa.h"
#include "model/inference.h"

namespace tessera::cli {

namespace {

struct Flags {
  std::string model = "gpt2-124m";
  std::string precision = "all";
  int64_t prompt = 512, tokens = 64, rounds = 3;
  int threads = 0;
  bool json = false;
};

double Dbl(int64_t value) { return static_cast<double>(value); }

bool IsTable(const ParameterSpec& spec) {
  return spec.kind == ParameterKind::kEmbedding || spec.kind == ParameterKind::kPosition;
}

// FLOPs of a prompt: all matrices of the blocks for each token, causal attention, the head once.
double PrefillFlops(const ModelConfig& config, int64_t prompt) {
  double block_weights = 0;
  for (const ParameterSpec& spec : ListParameters(config)) {
    if (spec.kind == ParameterKind::kMatrix) block_weights += Dbl(spec.size());
  }
  return 2 * block_weights * Dbl(prompt) +
         2 * Dbl(config.n_layers) * Dbl(config.q_width()) * Dbl(prompt) * Dbl(prompt) +
         2 * Dbl(config.vocab_size) * Dbl(config.d_model);
}

// Bytes that one token at `position` has to read: every weight but the tables of which it takes a
// row (the tied one is also the head), and the keys and values before it.
double DecodeBytes(const InferenceModel& model, int64_t position) {
  const ModelConfig& config = model.config();
  double bytes = 0;
  DType cache = DType::kF32;
  for (const InferenceModel::Weight& weight : model.parameters()) {
    const bool head = config.tie_embeddings && weight.spec.name == "transformer.wte.weight";
    if (weight.spec.kind == ParameterKind::kMatrix) cache = weight.dtype;
    if (IsTable(weight.spec) && !head) continue;
    bytes += Dbl(weight.spec.size() * DTypeBytes(weight.dtype));
  }
  return bytes + 2 * Dbl(config.n_layers * config.kv_width() * DTypeBytes(cache) * position);
}

void FillWeights(InferenceModel* model) {
  std::vector<float> values;
  for (size_t i = 0; i < model->parameters().size(); ++i) {
    const ParameterSpec& spec = model->parameters()[i].spec;
    values.resize(static_cast<size_t>(spec.size()));
    const RngKey key{3, RngPurpose::kCalibration, i};
    const bool gain = spec.kind == ParameterKind::kGain;
    for (size_t k = 0; k < values.size(); ++k) {
      values[k] = gain ? 1.0f : 0.04f * (key.Uniform(k) - 0.5f);
    }
    model->SetWeight(i, values.data(), DType::kF32);
  }
}

Result<Json> Measure(const Flags& flags, const ModelConfig& config, DType dtype, ThreadPool& pool) {
  TESSERA_ASSIGN(ProductLimit limit, ProductLimit::Create(dtype, pool));
  InferenceOptions options;
  options.max_length = flags.prompt + flags.tokens + 1;
  options.dtype = dtype;
  if (dtype == DType::kBf16) options.compute = kernels::MeasuredCompute().compute;
  TESSERA_ASSIGN(const std::unique_ptr<InferenceModel> model,
                 InferenceModel::Create(config, options, pool));
  FillWeights(model.get());
  std::vector<int32_t> prompt(static_cast<size_t>(flags.prompt));
  for (size_t i = 0; i < prompt.size(); ++i) {
    prompt[i] = static_cast<int32_t>((i * 7919 + 13) % static_cast<size_t>(config.vocab_size));
  }
  // The cache grows while tokens come; half of them is the mean.
  const double bytes = DecodeBytes(*model, flags.prompt + flags.tokens / 2);
  const double prefill_work = 1e-9 * PrefillFlops(config, flags.prompt);
  const auto read_rate = [&pool] {
    return MeasureMemoryRates(ReadMemoryInfo().available_bytes, ThisCpu().l3_bytes, pool).read_gb_per_s;
  };
  std::vector<double> prefill, prefill_fraction, decode, read, decode_fraction;
  for (int64_t round = 0; round <= flags.rounds; ++round) {
    const double product_before = limit.Measure(pool);
    model->Reset();
    Stopwatch watch;
    TESSERA_TRY(model->Prefill(prompt));
    const double prefill_seconds = watch.Lap();
    const double product_around = 0.5 * (product_before + limit.Measure(pool));
    const double read_before = read_rate();
    watch.Lap();
    int32_t token = 1;
    for (int64_t i = 0; i < flags.tokens; ++i) {
      TESSERA_ASSIGN(const std::span<const float> logits, model->Decode(token));
      token = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    }
    const double decode_seconds = watch.Lap() / Dbl(flags.tokens);
    // Guests are moved between places of the host whose memory is read at rates that differ by half.
    const double read_around = std::max(read_before, read_rate());
    if (round == 0) continue;  // warms up
    prefill.push_back(prefill_seconds);
    prefill_fraction.push_back(prefill_work / prefill_seconds / product_around);
    decode.push_back(decode_seconds);
    read.push_back(read_around);
    decode_fraction.push_back(1e-9 * bytes / decode_seconds / read_around);
  }
  const double prefill_gflops = prefill_work / Median(prefill);
  const double decode_gbps = 1e-9 * bytes / Median(decode);
  return Json{{"precision", dtype == DType::kBf16 ? "bf16" : "fp32"},
              {"prefill_tokens_per_s", Dbl(flags.prompt) / Median(prefill)},
              {"prefill_gflops", prefill_gflops},
              {"product_gflops", limit.best_gflops()},
              {"prefill_fraction", prefill_gflops / limit.best_gflops()},
              {"prefill_paired_fraction", Median(prefill_fraction)},
              {"decode_tokens_per_s", 1 / Median(decode)},
              {"decode_bytes_per_token", bytes},
              {"decode_gbps", decode_gbps},
              {"memory_read_gbps", Median(read)},
              {"decode_fraction", Median(decode_fraction)}};
}

Status Run(const Flags& flags) {
  TESSERA_ASSIGN(ModelConfig config, NamedModel(flags.model));
  config.max_seq_len = std::max(config.max_seq_len, flags.prompt + flags.tokens + 1);
  ThreadPool pool(flags.threads);
  Json rows = Json::array();
  for (const DType dtype : {DType::kBf16, DType::kF32}) {
    if (flags.precision == (dtype == DType::kBf16 ? "fp32" : "bf16")) continue;
    TESSERA_ASSIGN(Json row, Measure(flags, config, dtype, pool));
    rows.push_back(std::move(row));
  }
  if (flags.json) {
    const Json out = {{"model", flags.model},
                      {"parameters", CountParameters(config)},
                      {"prompt", flags.prompt},
                      {"tokens", flags.tokens},
                      {"threads", pool.num_threads()},
                      {"isa", kernels::IsaName(kernels::ActiveIsa())},
                      {"processor", ThisCpu().brand},
                      {"rows", std::move(rows)}};
    fmt::print("{}\n", JsonText(out, 2));
    return {};
  }
  fmt::print("{}: {} parameters, prompt of {}, {} new tokens, {} threads, {}\n", flags.model,
             FormatCount(Dbl(CountParameters(config))), flags.prompt, flags.tokens,
             pool.num_threads(), kernels::IsaName(kernels::ActiveIsa()));
  for (const Json& row : rows) {
    const auto number = [&row](const char* key) { return row.at(key).get<double>(); };
    fmt::print("{}  prompt: {:>8.1f} tokens/s, {:>6.1f} GFLOP/s, {:.2f} of the best product ({:.1f}), {:.2f} of the rate around it\n",
               row.at("precision").get<std::string>(), number("prefill_tokens_per_s"),
               number("prefill_gflops"), number("prefill_fraction"), number("product_gflops"),
               number("prefill_paired_fraction"));
    fmt::print("      decode: {:>8.1f} tokens/s, {:>6.1f} GB/s,    {:.2f} of the memory read rate around it ({:.1f})\n",
               number("decode_tokens_per_s"), number("decode_gbps"), number("decode_fraction"),
               number("memory_read_gbps"));
  }
  return {};
}

}  // namespace

void RegisterBenchGenerate(Command bench, Outcome& outcome) {
  Command command = bench.AddCommand(
      "generate", "Prompt and decode rates of random weights, beside the product's and memory's");
  auto flags = std::make_shared<Flags>();
  command.AddOption("--model", flags->model, "A named shape").ShowDefault();
  command.AddOption("--precision", flags->precision, "Of weights and cache")
      .OneOf({"all", "bf16", "fp32"})
      .ShowDefault();
  command.AddOption("--prompt", flags->prompt, "Tokens of the prompt").Range(1, 1 << 20).ShowDefault();
  command.AddOption("--tokens", flags->tokens, "Tokens that are decoded")
      .Range(1, 1 << 20)
      .ShowDefault();
  command.AddOption("--rounds", flags->rounds, "Of which the median counts, after one to warm up")
      .Range(1, 1000)
      .ShowDefault();
  command.AddOption("--threads", flags->threads, "Compute threads; 0 takes every core")
      .Range(0, 1024);
  command.AddFlag("--json", flags->json, "Print JSON");
  command.SetFooter("Example: tessera bench generate --model gpt2-124m --precision bf16 --json");
  command.SetCallback([flags, &outcome] { outcome.status = Run(*flags); });
}

}  // namespace tessera::cli
