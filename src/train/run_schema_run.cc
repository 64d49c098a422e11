// Keys of the run itself: length, sizes, files, evaluation, logging, memory.
#include "train/run_schema.h"

namespace tessera {

namespace {

// A monitor that is always on: {} or nothing, as in files of llm-foundry.
RunKey AlwaysOn(std::string path, std::string doc) {
  RunKey key{.path = std::move(path), .type = "empty section", .doc = std::move(doc)};
  key.whole_subtree = true;
  key.read = [](RunFileReading& /*reading*/, const YamlValue& value) -> std::optional<std::string> {
    if (value.kind == YamlValue::Kind::kMap && value.members.empty()) return std::nullopt;
    return Expected(value, "an empty section: {}");
  };
  return key;
}

// The stages of a growing batch or sequence: [{until: 100ba, <name>: 64}, ...].
template <class Field>
RunKey GrowthKey(std::string path, Field field, std::string name, std::string doc) {
  RunKey key{.path = path, .type = "list of stages", .doc = std::move(doc)};
  key.allowed = fmt::format("{{until: duration, {}: integer}}", name);
  key.whole_subtree = true;
  key.read = [field, name, path, allowed = key.allowed](
                 RunFileReading& reading, const YamlValue& value) -> std::optional<std::string> {
    if (value.kind != YamlValue::Kind::kList) return Expected(value, "a list of " + allowed);
    std::vector<GrowthStage> stages;
    for (size_t i = 0; i < value.items.size(); ++i) {
      const YamlValue& item = value.items[i];
      const std::string where = fmt::format("{}[{}]", path, i);
      const YamlValue* until = item.Find("until");
      const YamlValue* amount = item.Find(name);
      if (item.kind != YamlValue::Kind::kMap || until == nullptr || amount == nullptr ||
          item.members.size() != 2) {
        reading.Fail(item, where, Expected(item, allowed));
        continue;
      }
      GrowthStage stage;
      if (const auto problem = ReadDuration(*until, {.zero_allowed = false}, &stage.until)) {
        reading.Fail(*until, where + ".until", *problem);
      }
      const std::optional<int64_t> number = YamlInt(*amount);
      if (!number.has_value() || *number < 1 || *number > kLargestCount) {
        reading.Fail(*amount, where + "." + name, Expected(*amount, "an integer: 1 or more"));
      }
      stage.value = number.value_or(1);
      stages.push_back(stage);
    }
    field(reading.config) = std::move(stages);
    return std::nullopt;
  };
  key.write = [field, name](const RunConfig& config) -> OrderedJson {
    OrderedJson list = OrderedJson::array();
    for (const GrowthStage& stage : field(config)) {
      list.push_back({{"until", FormatDuration(stage.until)}, {name, stage.value}});
    }
    return list;
  };
  return key;
}

RunKey WithDefault(RunKey key, std::string text) {
  key.default_text = std::move(text);
  return key;
}

}  // namespace

void AddRunKeys(std::vector<RunKey>* keys) {
  const auto add = [keys](RunKey key) { keys->push_back(std::move(key)); };
  add(WithDefault(TextKey(
                      "run_name", [](auto& c) -> auto& { return c.run_name; },
                      "What the run is called in logs, reports and the default save_folder."),
                  "the run file's name"));
  add(IntKey(
      "seed", [](auto& c) -> auto& { return c.seed; }, {},
      "Fixes weights at the start, order of the data and dropout."));
  add(WithDefault(IntKey(
                      "max_seq_len", [](auto& c) -> auto& { return c.max_seq_len; },
                      {1, int64_t{1} << 31, "", 0}, "Tokens of a training sequence."),
                  "required, or model.max_seq_len"));
  add(WithDefault(DurationKey(
                      "max_duration", [](auto& c) -> auto& { return c.max_duration; },
                      {.zero_allowed = false, .fraction_allowed = false}, "How long to train."),
                  "required"));
  add(WithDefault(
      IntKey(
          "global_train_batch_size", [](auto& c) -> auto& { return c.global_train_batch_size; },
          {1, int64_t{1} << 31, "", 0}, "Sequences of an optimizer step."),
      "required"));
  add(IntKey(
      "device_train_microbatch_size",
      [](auto& c) -> auto& { return c.device_train_microbatch_size; },
      {1, int64_t{1} << 31, "auto", 0},
      "Sequences that go through the model at once; gradients of the passes add up. auto takes "
      "the fastest that fits in memory. Does not change the result."));
  add(IntKey(
      "device_eval_batch_size", [](auto& c) -> auto& { return c.device_eval_batch_size; },
      {1, int64_t{1} << 31, "auto", 0},
      "The same for evaluation; auto takes the training micro-batch."));
  add(ChoiceKey(
      "precision", [](auto& c) -> auto& { return c.precision; },
      std::vector<Choice<Precision>>{{"fp32", Precision::kFp32}, {"amp_bf16", Precision::kAmpBf16}},
      "amp_bf16 keeps activations and working weights in bf16, with fp32 masters, "
      "moments and reductions."));
  add(DurationKey(
      "eval_interval", [](auto& c) -> auto& { return c.eval_interval; }, {},
      "Time between evaluations on held-out documents; 0: only at the end."));
  add(BoolKey(
      "eval_first", [](auto& c) -> auto& { return c.eval_first; },
      "Also evaluate before the first step."));
  add(IntKey(
      "eval_subset_num_batches", [](auto& c) -> auto& { return c.eval_subset_num_batches; },
      {1, kLargestCount, "-1", -1},
      "Batches of an evaluation during the run; -1: all. The last evaluation is always whole."));
  add(DurationKey(
      "save_interval", [](auto& c) -> auto& { return c.save_interval; }, {},
      "Time between checkpoints; 0: only at the end."));
  add(WithDefault(TextKey(
                      "save_folder", [](auto& c) -> auto& { return c.save_folder; },
                      "Folder of checkpoints, metrics, summary and report. {run_name} is "
                      "replaced."),
                  "runs/{run_name}"));
  add(IntKey(
      "save_num_checkpoints_to_keep",
      [](auto& c) -> auto& { return c.save_num_checkpoints_to_keep; }, {1, kLargestCount, "-1", -1},
      "Older ones are removed; -1: all are kept."));
  add(BoolKey(
      "save_overwrite", [](auto& c) -> auto& { return c.save_overwrite; },
      "Start anew in a save_folder that holds another run's files, replacing them."));
  add(BoolKey(
      "save_weights_only", [](auto& c) -> auto& { return c.save_weights_only; },
      "Leave the optimizer's state out of checkpoints. Such a run can't be resumed."));
  add(BoolKey(
      "autoresume", [](auto& c) -> auto& { return c.autoresume; },
      "Go on from the newest checkpoint in save_folder where there is one."));
  add(TextKey(
      "load_path", [](auto& c) -> auto& { return c.load_path; },
      "Checkpoint or model folder to start from."));
  add(BoolKey(
      "load_weights_only", [](auto& c) -> auto& { return c.load_weights_only; },
      "Take only the weights of load_path: step, optimizer and data start anew."));
  add(BoolKey(
      "init_from_token_pairs", [](auto& c) -> auto& { return c.init_from_token_pairs; },
      "Before the first step, fit the embedding and the head to the counts of neighbouring tokens in "
      "the training split; its seconds count as training."));
  add(DurationKey(
      "console_log_interval", [](auto& c) -> auto& { return c.console_log_interval; },
      {.zero_allowed = false}, "Time between progress lines where the output is no terminal."));
  add(BoolKey(
      "loggers.console", [](auto& c) -> auto& { return c.loggers.console; },
      "Progress on the terminal."));
  add(BoolKey(
      "loggers.jsonl.enabled", [](auto& c) -> auto& { return c.loggers.jsonl; },
      "Metrics of every step as lines of JSON."));
  add(TextKey(
      "loggers.jsonl.filename", [](auto& c) -> auto& { return c.loggers.jsonl_filename; },
      "Their file in save_folder."));
  add(IntKey(
      "callbacks.speed_monitor.window_size", [](auto& c) -> auto& { return c.speed_window; },
      {1, 1000000, "", 0}, "Steps over which rates are averaged."));
  add(AlwaysOn("callbacks.lr_monitor", "Always on: the learning rate of every step."));
  add(AlwaysOn("callbacks.memory_monitor", "Always on: resident memory."));
  add(AlwaysOn("callbacks.runtime_estimator", "Always on: the time left."));
  add(AlwaysOn("callbacks.nan_monitor", "Always on: see max_nonfinite_steps."));
  add(IntKey(
      "virtual_ranks", [](auto& c) -> auto& { return c.virtual_ranks; }, {1, 65536, "", 0},
      "Parts of the global batch whose gradients are summed in a fixed tree, whoever computes "
      "them: the same bits on 1 to that many workers. A part of the run's identity."));
  add(ChoiceKey(
      "recompute", [](auto& c) -> auto& { return c.recompute; },
      std::vector<Choice<Recompute>>{{"none", Recompute::kNone},
                                     {"activation", Recompute::kActivation},
                                     {"norm", Recompute::kNorm},
                                     {"block", Recompute::kBlock}},
      "What the backward pass computes again instead of keeping it: the activation's "
      "output, also the norms' outputs, or all but each block's input."));
  add(BytesKey(
      "memory_limit", [](auto& c) -> auto& { return c.memory_limit; }, int64_t{1} << 20, "auto",
      "Memory that the run may take; auto: what the machine (or its cgroup) has free."));
  add(IntKey(
      "threads", [](auto& c) -> auto& { return c.threads; }, {1, 4096, "auto", 0},
      "Compute threads; auto: every core. Does not change the result."));
  add(IntKey(
      "loss_chunk_tokens", [](auto& c) -> auto& { return c.loss_chunk_tokens; },
      {1, int64_t{1} << 31, "auto", 0}, "Tokens whose logits exist at one time."));
  add(IntKey(
      "max_nonfinite_steps", [](auto& c) -> auto& { return c.max_nonfinite_steps; },
      {1, 1000000, "", 0},
      "A step with an infinite or undefined loss or gradient is skipped; after so many in a "
      "row the run stops."));
  add(GrowthKey(
      "batch_size_growth", [](auto& c) -> auto& { return c.batch_size_growth; },
      "global_train_batch_size",
      "Batch sizes at the start of the run; after the last stage the run's own."));
  add(GrowthKey(
      "sequence_length_growth", [](auto& c) -> auto& { return c.sequence_length_growth; },
      "max_seq_len",
      "Sequence lengths at the start of the run; after the last stage the run's own."));
  add(BoolKey(
      "report", [](auto& c) -> auto& { return c.report; },
      "Write report.html, a page with curves and samples, at the end."));
  add(BoolKey(
      "compare_compressors", [](auto& c) -> auto& { return c.compare_compressors; },
      "Put the bits per byte of gzip -9 and xz -9e on the held-out text into the summary."));
}

}  // namespace tessera
