#include <fmt/format.h>

#include <csignal>
#include <memory>
#include <string>
#include <vector>

#include "base/signals.h"
#include "base/strings.h"
#include "base/threads.h"
#include "cli/commands.h"
#include "store/object_store.h"
#include "train/run_plan.h"
#include "train/trainer.h"

namespace tessera::cli {

namespace {

struct Arguments {
  std::string run_file;
  std::vector<std::string> overrides;
  bool dry_run = false;
  bool json = false;
  bool profile = false;
  std::string trace;
};

// A word as a shell reads it back.
std::string Quoted(const std::string& word) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./,:@%";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) return word;
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

// The command that goes on where this run stops.
std::string ResumeCommand(const Arguments& arguments) {
  std::string command = "tessera train " + Quoted(arguments.run_file);
  for (const std::string& override_text : arguments.overrides) {
    if (override_text.starts_with("autoresume=")) continue;
    command += " " + Quoted(override_text);
  }
  return WithoutCredentials(command) + " autoresume=true";
}

Status DryRun(const RunConfig& config, const Arguments& arguments) {
  ThreadPool pool(config.threads);
  TESSERA_ASSIGN(const RunPlan plan, PlanRun(config, pool));
  if (arguments.json) {
    fmt::print("{}\n", JsonText(RunPlanToJson(plan), 2));
  } else {
    fmt::print("{}\n{}\nnothing was written (--dry-run)\n", RunConfigToYaml(config),
               FormatRunPlan(plan));
  }
  return plan.fits;
}

Status Train(const Arguments& arguments) {
  TESSERA_ASSIGN(const RunConfig config, ReadRunFile(arguments.run_file, arguments.overrides));
  if (arguments.dry_run) return DryRun(config, arguments);
  TESSERA_TRY(CheckTrainable(config));
  const StopSignals signals;
  TrainOptions options;
  options.profile = arguments.profile;
  options.trace_file = arguments.trace;
  options.resume_command = ResumeCommand(arguments);
  TESSERA_ASSIGN(const TrainOutcome trained, RunTraining(config, options));
  if (arguments.json) {
    fmt::print("{}\n", JsonText(trained.summary, 2));
  } else {
    fmt::print("{}", trained.text);
  }
  // SIGTERM is how schedulers ask for an orderly end, and it was orderly; Ctrl-C is a person who
  // wants to see that the run was cut short.
  if (!trained.complete && trained.stop_signal == SIGINT) {
    return Error{.code = ErrorCode::kCancelled,
                 .message = "stopped by Ctrl-C; everything up to the last step is saved"};
  }
  return {};
}

}  // namespace

void RegisterTrain(Command app, Outcome& outcome) {
  Command command = app.AddCommand(
      "train", "Train a model: tokenizer, dataset, plan, steps, checkpoints, report");
  auto arguments = std::make_shared<Arguments>();
  command.AddOption("run", arguments->run_file, "The run file (YAML)").Required();
  command.AddOption("overrides", arguments->overrides,
                    "key=value pairs that replace values of the run file");
  command.AddFlag("--dry-run", arguments->dry_run,
                  "Check the run file and print the resolved run and its plan");
  command.AddFlag("--json", arguments->json, "Print the summary (or the plan) as JSON");
  command.AddFlag("--profile", arguments->profile,
                  "Time, FLOPs and bytes of each form of op beside this machine's limits");
  command.AddOption("--trace", arguments->trace,
                    "Writes a timeline of the first steps to this file, for Perfetto "
                    "(ui.perfetto.dev) or chrome://tracing");
  command.SetFooter(
      "Examples:\n"
      "  tessera train recipes/quickstart.yaml\n"
      "  tessera train recipes/quickstart.yaml data.sources.mine=PATH run_name=mine\n"
      "  tessera train run.yaml max_duration=40ba save_interval=5ba save_folder=/data/run1\n"
      "  tessera train run.yaml autoresume=true        go on after a stop or a crash\n"
      "  tessera train run.yaml --dry-run              what it would take\n"
      "Ctrl-C finishes the step, saves and exits with 130; SIGTERM does the same and exits with "
      "0.");
  command.SetCallback([arguments, &outcome] { outcome.status = Train(*arguments); });
}

}  // namespace tessera::cli
