#include "kernels/reference/gemm.h"

#include <cmath>

namespace tessera::kernels::reference {

double Element(const MatrixRef& x, int64_t row, int64_t col) {
  const int64_t index = x.transposed ? col * x.ld + row : row * x.ld + col;
  if (x.dtype == DType::kBf16) return ToFloat(static_cast<const bf16*>(x.data)[index]);
  return static_cast<const float*>(x.data)[index];
}

double ApplyEpilogue(GemmEpilogue epilogue, double x) {
  switch (epilogue) {
    case GemmEpilogue::kNone:
      return x;
    case GemmEpilogue::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case GemmEpilogue::kGeluErf:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case GemmEpilogue::kReluSquared:
      return x > 0 ? x * x : 0;
  }
  return x;
}

GemmResult Gemm(const GemmArgs& args) {
  GemmResult result;
  for (int64_t i = 0; i < args.m; ++i) {
    for (int64_t j = 0; j < args.n; ++j) {
      double sum = 0, magnitude = 0;
      if (args.accumulate) {
        sum = static_cast<const float*>(args.c)[i * args.ldc + j];
        magnitude = std::abs(sum);
      }
      for (int64_t k = 0; k < args.k; ++k) {
        const double term = Element(args.a, i, k) * Element(args.b, k, j);
        sum += term;
        magnitude += std::abs(term);
      }
      if (args.bias != nullptr) {
        sum += args.bias[j];
        magnitude += std::abs(args.bias[j]);
      }
      result.before.push_back(sum);
      result.value.push_back(ApplyEpilogue(args.epilogue, sum));
      result.magnitude.push_back(magnitude);
    }
  }
  return result;
}

std::vector<float> GemmChain(const GemmArgs& args, ChainOrder order) {
  std::vector<float> out;
  const auto step = [&](int64_t i, int64_t j, int64_t k, float sum) {
    return std::fmaf(static_cast<float>(Element(args.a, i, k)),
                     static_cast<float>(Element(args.b, k, j)), sum);
  };
  for (int64_t i = 0; i < args.m; ++i) {
    for (int64_t j = 0; j < args.n; ++j) {
      float sum = args.accumulate ? static_cast<const float*>(args.c)[i * args.ldc + j] : 0.0f;
      switch (order) {
        case ChainOrder::kSteps:
          for (int64_t k = 0; k < args.k; ++k) sum = step(i, j, k, sum);
          break;
        case ChainOrder::kPairs:
          for (int64_t k = 0; k < args.k; k += 2) {
            if (k + 1 < args.k) sum = step(i, j, k + 1, sum);
            sum = step(i, j, k, sum);
          }
          break;
        case ChainOrder::kTiles:
          for (int64_t first = 0; first < args.k; first += 32) {
            float parts[2] = {0, 0};
            for (int64_t k = first; k < args.k && k < first + 32; ++k) {
              parts[k % 2] = step(i, j, k, parts[k % 2]);
            }
            sum += parts[0] + parts[1];
          }
          break;
      }
      out.push_back(sum);
    }
  }
  return out;
}

}  // namespace tessera::kernels::reference
