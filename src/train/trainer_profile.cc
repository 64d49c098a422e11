// What --profile and --trace of a run leave: the ops of its steps beside the limits, and a timeline.
#include "base/log.h"
#include "train/trainer_impl.h"

namespace tessera {

namespace {

// Calls that a timeline keeps: some hundred steps of a large model, 12 MiB.
constexpr int64_t kTraceEvents = int64_t{1} << 18;

}  // namespace

void Trainer::StartProfile() {
  if (!options_.profile && options_.trace_file.empty()) return;
  if (!profile_) {
    profile_ = std::make_unique<OpProfile>(options_.trace_file.empty() ? 0 : kTraceEvents);
    unprofiled_seconds_ = state_.progress.seconds;
  }
  engine_->SetProfile(profile_.get());
}

Status Trainer::FinishProfile() {
  if (!profile_) return {};
  const int64_t steps = state_.progress.step - first_step_;
  if (options_.profile && steps > 0) {
    const double seconds = state_.progress.seconds - unprofiled_seconds_;
    OpLimitsMeter limits(*pool_);
    limits.Measure();
    profile_json_ = ProfileToJson(*profile_, limits.Limits(gemm_gflops_), steps,
                                  seconds / static_cast<double>(steps));
    std::string text = FormatProfile(profile_json_);
    if (text.ends_with('\n')) text.pop_back();
    Say(text);
  }
  if (options_.trace_file.empty()) return {};
  TESSERA_TRY(profile_->WriteTrace(options_.trace_file));
  if (profile_->dropped_events() > 0) {
    LogWarning("{} holds the first {} calls; {} later ones are left out", options_.trace_file,
               kTraceEvents, profile_->dropped_events());
  }
  return {};
}

}  // namespace tessera
