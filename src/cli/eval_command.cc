#include <fmt/format.h>

#include <memory>
#include <string>

#include "base/files.h"
#include "base/progress.h"
#include "base/signals.h"
#include "base/strings.h"
#include "checkpoint/checkpoint.h"
#include "cli/commands.h"
#include "data/dataset.h"
#include "train/engine_state.h"
#include "train/evaluation.h"
#include "train/run_config.h"
#include "train/run_data.h"
#include "train/run_state.h"
#include "train/stage_plan.h"

namespace tessera::cli {

namespace {

namespace fs = std::filesystem;

struct Arguments {
  std::string checkpoint;
  std::string dataset;
  std::string split = kValidationFolder;
  int64_t batch_size = 8;
  int64_t max_batches = -1;
  int threads = 0;
  bool json = false;
};

// The dataset that the run was trained on.
Result<fs::path> DatasetOfRun(const RunConfig& config) {
  const std::string folder =
      config.data.dataset.empty() ? config.data.build_folder : config.data.dataset;
  if (folder.empty() || !PathExists(folder)) {
    return NotFound(
        fmt::format("the dataset of the run, '{}', is not there: give --dataset FOLDER", folder));
  }
  return fs::path(folder);
}

Status Evaluate(const Arguments& arguments) {
  const StopSignals signals;
  TESSERA_ASSIGN(const CheckpointInfo checkpoint, FindCheckpoint(arguments.checkpoint));
  TESSERA_TRY(VerifyCheckpoint(checkpoint));
  TESSERA_ASSIGN(const ModelConfig model, ReadCheckpointModel(checkpoint));
  const std::string state_path = (checkpoint.folder / kStateFile).string();
  TESSERA_ASSIGN(const Json state_json, ReadJsonFile(state_path));
  TESSERA_ASSIGN(const RunState state, RunStateFromJson(state_json, state_path));

  fs::path folder = arguments.dataset;
  EvaluationOptions options;
  std::unique_ptr<ShardCache> stream;  // Its files stay while it lives.
  if (folder.empty()) {
    TESSERA_ASSIGN(const RunConfig config, ReadRunFile(checkpoint.folder / kRunFile));
    if (!config.data.eval_streams.empty()) {
      TESSERA_ASSIGN(stream, FetchStream(config.data.eval_streams.front(),
                                         {.say = {}, .show_progress = !arguments.json}));
      folder = stream->folder();
      options.column = config.data.column;
      options.vocab_size = model.vocab_size;
      if (config.data.eos_id >= 0) options.eos_id = static_cast<int32_t>(config.data.eos_id);
    } else {
      TESSERA_ASSIGN(folder, DatasetOfRun(config));
    }
  }
  options.dataset = folder;
  const Result<DatasetInfo> dataset = ReadDatasetInfo(stream ? folder.parent_path() : folder);
  if (dataset.ok()) {
    if (!state.tokenizer_fingerprint.empty() &&
        dataset->tokenizer_fingerprint != state.tokenizer_fingerprint) {
      return InvalidArgument(fmt::format(
          "the dataset '{}' was built with another tokenizer than the one that '{}' was trained "
          "with: its token ids mean something else",
          folder.string(), checkpoint.folder.string()));
    }
    if (!stream) options.dataset = folder / arguments.split;
    if (!PathExists(options.dataset / "index.json")) {
      return NotFound(
          fmt::format("the dataset '{}' has no split '{}'", folder.string(), arguments.split));
    }
  } else if (dataset.error().code != ErrorCode::kNotFound || !PathExists(folder / "index.json")) {
    return dataset.error();
  }

  ThreadPool pool(arguments.threads);
  PlanOptions plan_options;
  plan_options.sequence_length = state.sequence_length;
  plan_options.microbatch = arguments.batch_size;
  plan_options.global_batch = arguments.batch_size;
  plan_options.precision = state.precision;
  plan_options.compute = state.compute;
  plan_options.num_threads = pool.num_threads();
  plan_options.training = false;
  TESSERA_ASSIGN(Plan plan, BuildPlan(model, plan_options));
  TESSERA_TRY(CheckFits(plan, AvailableMemory(RunConfig{})));
  TESSERA_ASSIGN(const std::unique_ptr<Engine> engine, Engine::Create(std::move(plan), pool));
  TESSERA_TRY(LoadModelWeights(checkpoint, *engine));

  options.sequence_length = state.sequence_length;
  options.batch_size = arguments.batch_size;
  options.max_batches = arguments.max_batches;
  ProgressMeter meter(
      "evaluating",
      {.noun = "batches", .mode = arguments.json ? ProgressMode::kSilent : ProgressMode::kAuto});
  options.progress = [&meter](int64_t done, int64_t) { meter.Update(done); };
  TESSERA_ASSIGN(const Evaluation evaluation, tessera::Evaluate(*engine, options));
  if (arguments.json) {
    Json json = EvaluationToJson(evaluation);
    json["checkpoint"] = checkpoint.folder.string();
    json["step"] = checkpoint.step;
    json["dataset"] = options.dataset.string();
    fmt::print("{}\n", JsonText(json, 2));
    return {};
  }
  fmt::print("{} on {}\n  loss          {:.4f}\n  perplexity    {:.2f}\n",
             checkpoint.folder.string(), options.dataset.string(), evaluation.loss,
             evaluation.perplexity);
  if (evaluation.bits_per_byte) fmt::print("  bits per byte {:.4f}\n", *evaluation.bits_per_byte);
  fmt::print("  {} documents, {} tokens in {}\n", evaluation.documents,
             FormatCount(static_cast<double>(evaluation.targets)),
             FormatDuration(evaluation.seconds));
  return {};
}

}  // namespace

void RegisterEval(Command app, Outcome& outcome) {
  Command command = app.AddCommand(
      "eval", "Loss, perplexity and bits per byte of a checkpoint on held-out documents");
  auto arguments = std::make_shared<Arguments>();
  command
      .AddOption("checkpoint", arguments->checkpoint,
                 "A checkpoint, or a save folder (its latest one)")
      .Required();
  command.AddOption("--dataset", arguments->dataset,
                    "A dataset's folder (the run's own where not given)");
  command.AddOption("--split", arguments->split, "validation or train");
  command.AddOption("--batch-size", arguments->batch_size, "Sequences at once").Range(1, 65536);
  command.AddOption("--max-batches", arguments->max_batches, "Stop after this many batches");
  command.AddOption("--threads", arguments->threads, "0: every core").Range(0, 4096);
  command.AddFlag("--json", arguments->json, "Print JSON");
  command.SetFooter(
      "Examples:\n"
      "  tessera eval runs/quickstart\n"
      "  tessera eval runs/quickstart/ckpt-00000040ba --dataset data/mine --json");
  command.SetCallback([arguments, &outcome] { outcome.status = Evaluate(*arguments); });
}

}  // namespace tessera::cli
