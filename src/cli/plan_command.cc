// `tessera plan RUN.yaml`: memory and time of a run before it is launched.
#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "base/strings.h"
#include "cli/commands.h"
#include "train/run_plan.h"
#include "train/run_schema.h"

namespace tessera::cli {

namespace {

struct PlanFlags {
  std::string run_file;
  std::vector<std::string> overrides;
  bool json = false;
  bool show_config = false;
  bool reference = false;
};

Status RunPlanCommand(const PlanFlags& flags) {
  if (flags.reference) {
    fmt::print("{}", RunFileReference());
    return {};
  }
  if (flags.run_file.empty()) {
    return InvalidArgument("name a run file: tessera plan RUN.yaml (recipes/ holds some)");
  }
  TESSERA_ASSIGN(const RunConfig config, ReadRunFile(flags.run_file, flags.overrides));
  if (flags.show_config) {
    fmt::print("{}",
               flags.json ? JsonText(RunConfigToJson(config), 2) + "\n" : RunConfigToYaml(config));
    return {};
  }
  ThreadPool pool(config.threads);
  TESSERA_ASSIGN(const RunPlan plan, PlanRun(config, pool));
  fmt::print("{}", flags.json ? JsonText(RunPlanToJson(plan), 2) + "\n" : FormatRunPlan(plan));
  // The exit code tells a script that the run would be refused; the plan has told a person why.
  if (!plan.fits.ok()) {
    return OutOfMemory(fmt::format(
        "the run does not fit into memory: it needs {}, {} are available; the plan tells what helps",
        FormatBytes(plan.plan.memory.total()), FormatBytes(plan.available_bytes)));
  }
  return {};
}

}  // namespace

void RegisterPlan(Command app, Outcome& outcome) {
  Command command = app.AddCommand("plan", "Memory and time of a run, before it starts");
  auto flags = std::make_shared<PlanFlags>();
  command.AddOption("run_file", flags->run_file, "The run file (YAML)");
  command.AddOption("overrides", flags->overrides, "key.path=value ...");
  command.AddFlag("--json", flags->json, "Print JSON");
  command.AddFlag("--config", flags->show_config,
                  "Print the resolved run file, with every default, and no plan");
  command.AddFlag("--reference", flags->reference, "Print the reference of all keys (Markdown)");
  command.SetFooter(
      "Examples:\n"
      "  tessera plan recipes/mpt/125m.yaml\n"
      "  tessera plan recipes/llama/1.3b.yaml recompute=block device_train_microbatch_size=1\n"
      "  tessera plan recipes/quickstart.yaml --config > resolved.yaml\n"
      "The exit code is 5 when the run does not fit into memory.");
  command.SetCallback([flags, &outcome] { outcome.status = RunPlanCommand(*flags); });
}

}  // namespace tessera::cli
