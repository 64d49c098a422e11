// Between an engine's memory and the files of a checkpoint.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "model/engine.h"

namespace tessera {

// Averaged weights, under the names of the weights; only in runs that keep an average.
inline constexpr const char* kAverageFile = "average.safetensors";

// The tensor files of a checkpoint, borrowed from the engine's memory: weights, and with `state`
// the optimizer's ("NAME.state0", "NAME.state1"); the average in a file of its own where `average`.
std::vector<CheckpointTensorFile> EngineTensors(Engine& engine, bool state, bool average);

enum class LoadPart { kWeights, kWeightsAndState };

// Reads a verified checkpoint into the engine. `average` says whether the checkpoint's average is
// to go on. The engine's architecture must be the checkpoint's: see CheckArchitecture.
Status LoadEngine(const CheckpointInfo& checkpoint, LoadPart part, bool average, Engine& engine);

// Reads the weights that a finished model is used with: the average where there is one.
Status LoadModelWeights(const CheckpointInfo& checkpoint, Engine& engine);
Result<ModelConfig> ReadCheckpointModel(const CheckpointInfo& checkpoint);

// An error that lists the first fields that differ, with both values.
Status CheckArchitecture(const CheckpointInfo& checkpoint, const ModelConfig& wanted);

}  // namespace tessera
