// Initial weights, a pure function of (scheme, seed, tensor name, element).
#pragma once

#include <cstdint>

#include "base/threads.h"
#include "model/config.h"

namespace tessera {

// Fills value[rows*cols]. Schemes and their sources are described at InitScheme.
void InitializeParameter(const ModelConfig& config, const ParameterSpec& spec, uint64_t seed,
                         float* value, ThreadPool& pool);

}  // namespace tessera
