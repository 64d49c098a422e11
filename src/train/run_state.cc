#include "train/run_state.h"

#include <fmt/format.h>

#include <algorithm>

namespace tessera {

namespace {
constexpr int64_t kStateVersion = 1;

Error Wrong(std::string_view source, std::string_view key, std::string_view value) {
  return Corrupt(fmt::format("{}: key '{}' has the unknown value '{}'", source, key, value));
}
}  // namespace

std::string_view ComputeName(kernels::Compute compute) {
  return compute == kernels::Compute::kBf16 ? "bf16" : "fp32";
}

Json RunStateToJson(const RunState& state) {
  return {{"format_version", kStateVersion},
          {"step", state.progress.step},
          {"tokens", state.progress.tokens},
          {"epochs", state.progress.epochs},
          {"seconds", state.progress.seconds},
          {"updates", state.updates},
          {"skipped_steps", state.skipped_steps},
          {"nonfinite_in_row", state.nonfinite_in_row},
          {"replaced_samples", state.replaced_samples},
          {"loader", LoaderStateToJson(state.loader)},
          {"sequence_length", state.sequence_length},
          {"batch_size", state.batch_size},
          {"average_started", state.average_started},
          {"last_eval_step", state.last_eval_step},
          {"last_eval", state.last_eval},
          {"last_loss", state.last_loss},
          {"seed", state.seed},
          {"virtual_ranks", state.virtual_ranks},
          {"optimizer", UpdateRuleName(state.optimizer)},
          {"precision", PrecisionName(state.precision)},
          {"compute", ComputeName(state.compute)},
          {"data_fingerprint", state.data_fingerprint},
          {"tokenizer_fingerprint", state.tokenizer_fingerprint}};
}

Result<RunState> RunStateFromJson(const Json& json, std::string_view source) {
  TESSERA_ASSIGN(const int64_t version, JsonInt(json, "format_version", source));
  if (version != kStateVersion) {
    return Unsupported(
        fmt::format("{}: format version {}, this build reads {}", source, version, kStateVersion));
  }
  RunState state;
  TESSERA_ASSIGN(state.progress.step, JsonInt(json, "step", source));
  TESSERA_ASSIGN(state.progress.tokens, JsonInt(json, "tokens", source));
  TESSERA_ASSIGN(state.progress.epochs, JsonNumber(json, "epochs", source));
  TESSERA_ASSIGN(state.progress.seconds, JsonNumber(json, "seconds", source));
  TESSERA_ASSIGN(state.updates, JsonInt(json, "updates", source));
  TESSERA_ASSIGN(state.skipped_steps, JsonInt(json, "skipped_steps", source));
  TESSERA_ASSIGN(state.nonfinite_in_row, JsonInt(json, "nonfinite_in_row", source));
  // Not in checkpoints of before it was counted.
  if (json.contains("replaced_samples")) {
    TESSERA_ASSIGN(state.replaced_samples, JsonInt(json, "replaced_samples", source));
  }
  TESSERA_ASSIGN(state.loader, LoaderStateFromJson(json.value("loader", Json()), source));
  TESSERA_ASSIGN(state.sequence_length, JsonInt(json, "sequence_length", source));
  TESSERA_ASSIGN(state.batch_size, JsonInt(json, "batch_size", source));
  TESSERA_ASSIGN(state.last_eval_step, JsonInt(json, "last_eval_step", source));
  TESSERA_ASSIGN(state.virtual_ranks, JsonInt(json, "virtual_ranks", source));
  state.last_eval = json.value("last_eval", Json());
  if (const auto loss = json.find("last_loss"); loss != json.end() && loss->is_number()) {
    state.last_loss = loss->get<double>();
  }
  const auto started = json.find("average_started");
  if (started == json.end() || !started->is_boolean()) {
    return Corrupt(fmt::format("{}: key 'average_started' must be true or false", source));
  }
  state.average_started = started->get<bool>();
  const auto seed = json.find("seed");
  if (seed == json.end() || !seed->is_number_unsigned()) {
    return Corrupt(fmt::format("{}: key 'seed' must be a whole number", source));
  }
  state.seed = seed->get<uint64_t>();
  TESSERA_ASSIGN(state.data_fingerprint, JsonString(json, "data_fingerprint", source));
  TESSERA_ASSIGN(state.tokenizer_fingerprint, JsonString(json, "tokenizer_fingerprint", source));

  TESSERA_ASSIGN(const std::string optimizer, JsonString(json, "optimizer", source));
  bool found = false;
  for (const UpdateRule rule : {UpdateRule::kAdamW, UpdateRule::kLion, UpdateRule::kMuon}) {
    if (UpdateRuleName(rule) != optimizer) continue;
    state.optimizer = rule;
    found = true;
  }
  if (!found) return Wrong(source, "optimizer", optimizer);
  TESSERA_ASSIGN(const std::string precision, JsonString(json, "precision", source));
  if (precision == PrecisionName(Precision::kFp32)) {
    state.precision = Precision::kFp32;
  } else if (precision == PrecisionName(Precision::kAmpBf16)) {
    state.precision = Precision::kAmpBf16;
  } else {
    return Wrong(source, "precision", precision);
  }
  TESSERA_ASSIGN(const std::string compute, JsonString(json, "compute", source));
  if (compute == ComputeName(kernels::Compute::kF32)) {
    state.compute = kernels::Compute::kF32;
  } else if (compute == ComputeName(kernels::Compute::kBf16)) {
    state.compute = kernels::Compute::kBf16;
  } else {
    return Wrong(source, "compute", compute);
  }
  const bool sane = state.progress.step >= 0 && state.progress.tokens >= 0 &&
                    state.progress.epochs >= 0 && state.progress.seconds >= 0 &&
                    state.sequence_length > 0 && state.batch_size > 0 && state.loader.epoch >= 0 &&
                    state.loader.sample >= 0;
  if (!sane) return Corrupt(fmt::format("{}: a counter is negative or a size is zero", source));
  return state;
}

LoaderState ConvertLoaderState(const LoaderState& state, int64_t from_length, int64_t to_length,
                               int64_t samples) {
  LoaderState out = state;
  if (from_length != to_length) {
    const auto tokens = static_cast<__int128>(state.sample) * from_length;
    out.sample = static_cast<int64_t>((tokens + to_length - 1) / to_length);
  }
  if (out.sample >= samples) {
    ++out.epoch;
    out.sample = 0;
  }
  return out;
}

}  // namespace tessera
