#include "train/engine_state.h"

#include <fmt/format.h>

#include "base/strings.h"

namespace tessera {

namespace {

const std::map<std::string, std::string> kMetadata = {{"format", "pt"}};

// Names the file and the checkpoint in what ReadSafetensors reports.
Status ReadInto(const CheckpointInfo& checkpoint, const char* file,
                const std::vector<TensorTarget>& targets) {
  if (!checkpoint.Has(file)) {
    return NotFound(
        fmt::format("checkpoint '{}' has no {}: it was saved with "
                    "save_weights_only; set load_weights_only=true and load_path to "
                    "start from its weights",
                    checkpoint.folder.string(), file));
  }
  return ReadSafetensors(checkpoint.folder / file, targets);
}

std::vector<TensorTarget> WeightTargets(Engine& engine) {
  std::vector<TensorTarget> targets;
  for (const Parameter& parameter : engine.parameters()) {
    targets.push_back({parameter.spec.name, DType::kF32, parameter.spec.shape(), parameter.value});
  }
  return targets;
}

}  // namespace

std::vector<CheckpointTensorFile> EngineTensors(Engine& engine, bool state, bool average) {
  CheckpointTensorFile weights{kWeightsFile, {}, kMetadata};
  CheckpointTensorFile optimizer{kOptimizerFile, {}, kMetadata};
  CheckpointTensorFile averaged{kAverageFile, {}, kMetadata};
  for (const Parameter& parameter : engine.parameters()) {
    const std::string& name = parameter.spec.name;
    const std::vector<int64_t> shape = parameter.spec.shape();
    weights.tensors.push_back({name, DType::kF32, shape, parameter.value});
    if (parameter.state0 != nullptr) {
      optimizer.tensors.push_back({name + ".state0", DType::kF32, shape, parameter.state0});
    }
    if (parameter.state1 != nullptr) {
      optimizer.tensors.push_back({name + ".state1", DType::kF32, shape, parameter.state1});
    }
    if (parameter.average != nullptr) {
      averaged.tensors.push_back({name, DType::kF32, shape, parameter.average});
    }
  }
  std::vector<CheckpointTensorFile> files;
  files.push_back(std::move(weights));
  if (average && !averaged.tensors.empty()) files.push_back(std::move(averaged));
  if (state) files.push_back(std::move(optimizer));
  return files;
}

Status LoadEngine(const CheckpointInfo& checkpoint, LoadPart part, bool average, Engine& engine) {
  if (part == LoadPart::kWeightsAndState) {
    std::vector<TensorTarget> targets;
    std::vector<TensorTarget> averages;
    for (const Parameter& parameter : engine.parameters()) {
      const std::vector<int64_t> shape = parameter.spec.shape();
      if (parameter.state0 != nullptr) {
        targets.push_back({parameter.spec.name + ".state0", DType::kF32, shape, parameter.state0});
      }
      if (parameter.state1 != nullptr) {
        targets.push_back({parameter.spec.name + ".state1", DType::kF32, shape, parameter.state1});
      }
      if (parameter.average != nullptr) {
        averages.push_back({parameter.spec.name, DType::kF32, shape, parameter.average});
      }
    }
    TESSERA_TRY(ReadInto(checkpoint, kOptimizerFile, targets));
    if (average && !averages.empty()) {
      TESSERA_TRY(ReadInto(checkpoint, kAverageFile, averages));
      engine.AverageLoaded();
    }
  }
  TESSERA_TRY(ReadInto(checkpoint, kWeightsFile, WeightTargets(engine)));
  engine.WeightsChanged();
  return {};
}

Status LoadModelWeights(const CheckpointInfo& checkpoint, Engine& engine) {
  const char* file = checkpoint.Has(kAverageFile) ? kAverageFile : kWeightsFile;
  TESSERA_TRY(ReadInto(checkpoint, file, WeightTargets(engine)));
  engine.WeightsChanged();
  return {};
}

Result<ModelConfig> ReadCheckpointModel(const CheckpointInfo& checkpoint) {
  const std::filesystem::path path = checkpoint.folder / kModelConfigFile;
  TESSERA_ASSIGN(const Json json, ReadJsonFile(path, int64_t{1} << 20));
  return ModelConfigFromJson(json, path.string());
}

Status CheckArchitecture(const CheckpointInfo& checkpoint, const ModelConfig& wanted) {
  TESSERA_ASSIGN(const ModelConfig saved, ReadCheckpointModel(checkpoint));
  const Json ours = ModelConfigToJson(wanted);
  // Through ModelConfig, so that fields that a version added compare with their defaults.
  const Json theirs = ModelConfigToJson(saved);
  constexpr size_t kShown = 6;
  std::vector<std::string> differences;
  for (const auto& [key, value] : ours.items()) {
    // Neither how weights begin nor dropout changes what a trained model is.
    if (key.starts_with("init") || key == "embedding_init_std" || key.ends_with("_dropout")) {
      continue;
    }
    const Json other = theirs.value(key, Json());
    if (other != value) {
      differences.push_back(fmt::format("{} is {} in the checkpoint, {} in the run", key,
                                        JsonText(other), JsonText(value)));
    }
  }
  if (differences.empty()) return {};
  const size_t total = differences.size();
  if (total > kShown) differences.resize(kShown);
  return InvalidArgument(fmt::format(
      "checkpoint '{}' holds another architecture: {}{}", checkpoint.folder.string(),
      Join(differences, "; "), total > kShown ? fmt::format("; and {} more", total - kShown) : ""));
}

}  // namespace tessera
