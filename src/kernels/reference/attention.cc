#include "kernels/reference/attention.h"

#include <cmath>
#include <limits>

namespace tessera::kernels::reference {

namespace {

// One query row of one head: visible keys, probabilities, dropout factors, derivative of the score
// with respect to scale q k.
struct Row {
  std::vector<double> p, keep, slope;
  double lse = -std::numeric_limits<double>::infinity();
};

bool Visible(const AttentionProblem& problem, int64_t b, int64_t i, int64_t position, int64_t j) {
  const AttentionShape& shape = problem.shape;
  if ((shape.causal || shape.window > 0) && j > position) return false;
  if (shape.window > 0 && j < position - shape.window + 1) return false;
  if (shape.segment_start != nullptr && j < shape.segment_start[b * shape.length + i]) return false;
  return true;
}

Row ComputeRow(const AttentionProblem& problem, int64_t b, int64_t h, int64_t i) {
  const AttentionShape& shape = problem.shape;
  const int64_t kv_head = h / (shape.heads / shape.kv_heads), d_size = shape.head_size;
  const int64_t position = i + (problem.past.empty() ? 0 : problem.past[static_cast<size_t>(b)]);
  const double* q =
      &problem.q[static_cast<size_t>(((b * shape.length + i) * shape.heads + h) * d_size)];
  Row row;
  row.p.assign(static_cast<size_t>(problem.keys), 0.0);
  row.keep = row.slope = row.p;
  double max = -std::numeric_limits<double>::infinity();
  for (int64_t j = 0; j < problem.keys; ++j) {
    const size_t at = static_cast<size_t>(j);
    row.p[at] = -std::numeric_limits<double>::infinity();
    if (!Visible(problem, b, i, position, j)) continue;
    const double* k =
        &problem
             .k[static_cast<size_t>(((b * problem.keys + j) * shape.kv_heads + kv_head) * d_size)];
    double s = 0;
    for (int64_t d = 0; d < d_size; ++d) s += q[d] * k[d];
    s *= static_cast<double>(shape.scale);
    row.slope[at] = 1.0;
    if (shape.softcap > 0) {
      const double cap = static_cast<double>(shape.softcap), t = std::tanh(s / cap);
      s = cap * t;
      row.slope[at] = 1.0 - t * t;
    }
    if (shape.alibi_slopes != nullptr) {
      s -= static_cast<double>(shape.alibi_slopes[h]) * static_cast<double>(std::abs(position - j));
    }
    row.keep[at] = 1.0;
    if (shape.dropout > 0) {
      const uint64_t length = static_cast<uint64_t>(shape.length);
      const uint64_t sequence = static_cast<uint64_t>(shape.first_sequence + b);
      const uint64_t element =
          ((sequence * static_cast<uint64_t>(shape.heads) + static_cast<uint64_t>(h)) * length +
           static_cast<uint64_t>(i)) *
              length +
          static_cast<uint64_t>(j);
      row.keep[at] = shape.dropout_key.Uniform(element) >= shape.dropout
                         ? 1.0 / (1.0 - static_cast<double>(shape.dropout))
                         : 0.0;
    }
    row.p[at] = s;
    max = std::max(max, s);
  }
  double sum = 0;
  for (double& x : row.p) {
    x = std::isinf(x) ? 0.0 : std::exp(x - max);
    sum += x;
  }
  if (sum > 0) {
    for (double& x : row.p) x /= sum;
    row.lse = max + std::log(sum);
  }
  return row;
}

}  // namespace

AttentionOutput AttentionForward(const AttentionProblem& problem) {
  const AttentionShape& shape = problem.shape;
  const int64_t group = shape.heads / shape.kv_heads, d_size = shape.head_size;
  AttentionOutput output;
  output.out.assign(problem.q.size(), 0.0);
  output.lse.assign(static_cast<size_t>(shape.batch * shape.heads * shape.length), 0.0);
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t h = 0; h < shape.heads; ++h) {
      for (int64_t i = 0; i < shape.length; ++i) {
        const Row row = ComputeRow(problem, b, h, i);
        output.lse[static_cast<size_t>((b * shape.heads + h) * shape.length + i)] = row.lse;
        double* out =
            &output.out[static_cast<size_t>(((b * shape.length + i) * shape.heads + h) * d_size)];
        for (int64_t j = 0; j < problem.keys; ++j) {
          const double* v = &problem.v[static_cast<size_t>(
              ((b * problem.keys + j) * shape.kv_heads + h / group) * d_size)];
          const double p = row.p[static_cast<size_t>(j)] * row.keep[static_cast<size_t>(j)];
          for (int64_t d = 0; d < d_size; ++d) out[d] += p * v[d];
        }
      }
    }
  }
  return output;
}

AttentionGradients AttentionBackward(const AttentionProblem& problem,
                                     const std::vector<double>& dout) {
  const AttentionShape& shape = problem.shape;
  const int64_t group = shape.heads / shape.kv_heads, d_size = shape.head_size;
  const double scale = static_cast<double>(shape.scale);
  AttentionGradients g;
  g.dq.assign(problem.q.size(), 0.0);
  g.dk.assign(problem.k.size(), 0.0);
  g.dv.assign(problem.v.size(), 0.0);
  std::vector<double> dp(static_cast<size_t>(problem.keys));
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t h = 0; h < shape.heads; ++h) {
      for (int64_t i = 0; i < shape.length; ++i) {
        const Row row = ComputeRow(problem, b, h, i);
        const size_t q_at =
            static_cast<size_t>(((b * shape.length + i) * shape.heads + h) * d_size);
        // Softmax: ds_j = p_j (dp_j - sum over l of p_l dp_l), dp_j = keep_j dO v_j.
        double mean = 0;
        for (int64_t j = 0; j < problem.keys; ++j) {
          const size_t at = static_cast<size_t>(j);
          const size_t kv_at =
              static_cast<size_t>(((b * problem.keys + j) * shape.kv_heads + h / group) * d_size);
          double x = 0;
          for (size_t d = 0; d < static_cast<size_t>(d_size); ++d) {
            x += dout[q_at + d] * problem.v[kv_at + d];
            g.dv[kv_at + d] += row.p[at] * row.keep[at] * dout[q_at + d];
          }
          dp[at] = x * row.keep[at];
          mean += row.p[at] * dp[at];
        }
        for (int64_t j = 0; j < problem.keys; ++j) {
          const size_t at = static_cast<size_t>(j);
          const size_t kv_at =
              static_cast<size_t>(((b * problem.keys + j) * shape.kv_heads + h / group) * d_size);
          const double ds = row.p[at] * (dp[at] - mean) * row.slope[at] * scale;
          for (size_t d = 0; d < static_cast<size_t>(d_size); ++d) {
            g.dq[q_at + d] += ds * problem.k[kv_at + d];
            g.dk[kv_at + d] += ds * problem.q[q_at + d];
          }
        }
      }
    }
  }
  return g;
}

}  // namespace tessera::kernels::reference
