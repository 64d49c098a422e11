// The slow oracle of Muon: the formula of kernels/optimizer.h in double.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/optimizer.h"

namespace tessera::kernels::reference {

struct MuonResult {
  std::vector<double> p, momentum;
};
// `round`: each tensor of the Newton-Schulz steps is rounded to bf16, as Muon is commonly run.
MuonResult Muon(const std::vector<float>& p, const std::vector<float>& g,
                const std::vector<float>& momentum, int64_t rows, int64_t cols,
                const MuonOptions& options, bool round = false);

}  // namespace tessera::kernels::reference
