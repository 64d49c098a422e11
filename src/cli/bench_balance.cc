// `tessera bench balance`: how evenly the ops of a step share their work among any number of threads,
// by counted work instead of time, and whether every number of threads gives the same bits.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/hash.h"
#include "base/json.h"
#include "base/rng.h"
#include "base/strings.h"
#include "base/threads.h"
#include "base/work_meter.h"
#include "cli/commands.h"
#include "kernels/gemm.h"
#include "model/engine.h"
#include "model/plan.h"
#include "model/profile.h"

namespace tessera::cli {

namespace {

struct Flags {
  std::string model = "gpt2-124m";
  std::string precision = "amp_bf16";
  std::string optimizer = "adamw";
  std::string threads = "1,2,4,8,16";
  int64_t length = 1024, batch = 2, vocab = 4096, layers = 1;
  bool json = false;
};

Result<std::vector<int>> ParseThreads(const std::string& text) {
  std::vector<int> counts;
  for (const std::string_view part : Split(text, ',')) {
    const auto count = ParseInt(Trim(part));
    if (!count || *count < 1 || *count > 1024) {
      return InvalidArgument(fmt::format(
          "--threads must be numbers from 1 to 1024 with commas between, found '{}'", text));
    }
    counts.push_back(static_cast<int>(*count));
  }
  return counts;
}

struct Outcomes {
  struct Op {
    double busiest = 0, mean = 0, seconds = 0;
    int64_t uncounted = 0;
  };
  std::map<std::string, Op> ops;
  double loss = 0;
  std::string bits;  // of the weights after two steps
};

Result<Outcomes> RunSteps(const Flags& flags, int threads) {
  ThreadPool pool(threads);
  TESSERA_ASSIGN(ModelConfig config, NamedModel(flags.model));
  if (flags.layers > 0) config.n_layers = flags.layers;
  if (flags.vocab > 0) config.vocab_size = flags.vocab;
  config.max_seq_len = std::max(config.max_seq_len, flags.length);
  PlanOptions options;
  options.sequence_length = flags.length;
  options.global_batch = options.microbatch = flags.batch;
  options.num_threads = threads;
  if (flags.precision == "amp_bf16") {
    options.precision = Precision::kAmpBf16;
    options.compute = kernels::MeasuredCompute().compute;
  }
  options.optimizer = flags.optimizer == "muon" ? UpdateRule::kMuon : UpdateRule::kAdamW;
  TESSERA_ASSIGN(const Plan plan, BuildPlan(config, options));
  TESSERA_ASSIGN(const std::unique_ptr<Engine> engine, Engine::Create(plan, pool));
  engine->InitializeWeights(1);
  std::vector<int32_t> tokens(static_cast<size_t>(flags.batch * flags.length));
  const RngKey key{2, RngPurpose::kCalibration, 0};
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<int32_t>(key.Block(i)[0] % static_cast<uint32_t>(config.vocab_size));
  }
  WorkMeter meter(threads);
  OpProfile profile;
  profile.set_meter(&meter);
  engine->SetProfile(&profile);
  SetWorkMeter(&meter);
  Outcomes outcomes;
  for (int64_t step = 1; step <= 2; ++step) {
    outcomes.loss =
        engine->ForwardBackward({flags.batch, tokens.data(), tokens.data(), nullptr}, {}, 1, step)
            .loss;
    UpdateOptions update;
    update.step = step;
    update.lr = update.muon_lr = 1e-3;
    update.grad_clip = 1;
    engine->Update(update);
  }
  SetWorkMeter(nullptr);
  for (const OpProfile::Row& row : profile.rows()) {
    if (row.calls == 0 || row.op_class == OpClass::kPhase) continue;
    const std::string name = row.form.empty() ? row.name : row.name + " " + row.form;
    outcomes.ops[name] = {row.busiest_work, row.mean_work, row.seconds, row.uncounted_regions};
  }
  std::string all;
  for (const Parameter& parameter : engine->parameters()) {
    const auto* bytes = reinterpret_cast<const char*>(parameter.value);
    all += fmt::format("{:016x}", Xxh3({bytes, static_cast<size_t>(parameter.spec.size()) * 4}));
  }
  outcomes.bits = fmt::format("{:016x}", Xxh3(all));
  return outcomes;
}

Status Run(const Flags& flags) {
  TESSERA_ASSIGN(const std::vector<int> counts, ParseThreads(flags.threads));
  // The time of one thread tells what an op weighs in the step.
  TESSERA_ASSIGN(const Outcomes alone, RunSteps(flags, 1));
  double seconds = 0;
  for (const auto& [name, op] : alone.ops) seconds += op.seconds;
  Json rows = Json::array();
  bool same = true;
  for (const int threads : counts) {
    TESSERA_ASSIGN(const Outcomes run, RunSteps(flags, threads));
    same = same && run.bits == alone.bits;
    double step = 0;
    Json ops = Json::array();
    for (const auto& [name, op] : run.ops) {
      const auto one = alone.ops.find(name);
      const double share = one == alone.ops.end() ? 0 : one->second.seconds / seconds;
      // What was not counted is taken as even, and told.
      const double ratio = op.mean > 0 ? op.busiest / op.mean : 1;
      step += share * ratio;
      ops.push_back({{"op", name},
                     {"share", share},
                     {"busiest_over_mean", ratio},
                     {"uncounted_regions", op.uncounted}});
    }
    std::stable_sort(ops.begin(), ops.end(), [](const Json& a, const Json& b) {
      return a["share"].get<double>() * (a["busiest_over_mean"].get<double>() - 1) >
             b["share"].get<double>() * (b["busiest_over_mean"].get<double>() - 1);
    });
    rows.push_back({{"threads", threads},
                    {"busiest_over_mean", step},
                    {"same_bits", run.bits == alone.bits},
                    {"ops", std::move(ops)}});
  }
  if (flags.json) {
    const Json out = {{"model", flags.model}, {"layers", flags.layers}, {"batch", flags.batch},
                      {"sequence_length", flags.length}, {"precision", flags.precision},
                      {"optimizer", flags.optimizer}, {"rows", std::move(rows)}};
    fmt::print("{}\n", out.dump(2));
  } else {
    fmt::print("{}, {} block{}, batch {} x {}, {}: work of the busiest thread over the mean\n",
               flags.model, flags.layers, flags.layers == 1 ? "" : "s", flags.batch, flags.length,
               flags.precision);
    for (const Json& row : rows) {
      fmt::print("{:>3} threads: {:.3f}, {}\n", row["threads"].get<int>(),
                 row["busiest_over_mean"].get<double>(),
                 row["same_bits"].get<bool>() ? "the bits of one thread" : "OTHER BITS");
      for (size_t i = 0; i < std::min<size_t>(row["ops"].size(), 4); ++i) {
        const Json& op = row["ops"][i];
        const double ratio = op["busiest_over_mean"].get<double>();
        if (ratio < 1.001) break;
        fmt::print("      {:<45} {:.3f} at {:.1f}% of the step\n", op["op"].get<std::string>(), ratio,
                   100 * op["share"].get<double>());
      }
    }
  }
  if (!same) return Internal("the weights after two steps depend on the number of threads");
  return {};
}

}  // namespace

void RegisterBenchBalance(Command bench, Outcome& outcome) {
  Command command = bench.AddCommand(
      "balance", "How evenly threads share the work of a step, counted; and whether bits stay equal");
  auto flags = std::make_shared<Flags>();
  command.AddOption("--model", flags->model, "A named shape").ShowDefault();
  command.AddOption("--layers", flags->layers, "Blocks; 0 takes the model's").Range(0, 1000).ShowDefault();
  command.AddOption("--vocab", flags->vocab, "Vocabulary; 0 takes the model's").ShowDefault();
  command.AddOption("--seq", flags->length, "Tokens of a sequence").Range(1, 1 << 20).ShowDefault();
  command.AddOption("--batch", flags->batch, "Sequences of a step").Range(1, 1 << 16).ShowDefault();
  command.AddOption("--precision", flags->precision).OneOf({"fp32", "amp_bf16"}).ShowDefault();
  command.AddOption("--optimizer", flags->optimizer).OneOf({"adamw", "muon"}).ShowDefault();
  command.AddOption("--threads", flags->threads, "Numbers of threads, also above the cores")
      .ShowDefault();
  command.AddFlag("--json", flags->json, "Print JSON");
  command.SetFooter(
      "Work is counted in the units of each op (multiply-adds, elements, query-key pairs). Lists of\n"
      "items from which free threads take the next are dealt out as threads of equal speed would.\n"
      "An op weighs what it takes on one thread.\n"
      "Example: tessera bench balance --model modern-10m --layers 4 --seq 256 --batch 8 --threads 1,2,16");
  command.SetCallback([flags, &outcome] { outcome.status = Run(*flags); });
}

}  // namespace tessera::cli
