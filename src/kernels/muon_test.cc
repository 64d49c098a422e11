#include "kernels/reference/muon.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels/isa.h"
#include "kernels/optimizer.h"

namespace tessera::kernels {
namespace {

struct Problem {
  int64_t rows, cols;
  std::vector<std::vector<float>> p, g, momentum;

  Problem(int64_t num_rows, int64_t num_cols, int64_t count, uint64_t seed)
      : rows(num_rows), cols(num_cols) {
    uint64_t state = seed * 0x9e3779b97f4a7c15ull + 1;
    const auto random = [&state] {
      double sum = 0;  // near enough to normal
      for (int i = 0; i < 4; ++i) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        sum += static_cast<double>(state >> 40) / (1 << 24) - 0.5;
      }
      return static_cast<float>(sum);
    };
    for (int64_t i = 0; i < count; ++i) {
      for (auto* tensor : {&p, &g, &momentum}) {
        tensor->emplace_back(static_cast<size_t>(rows * cols));
        for (float& value : tensor->back()) value = random();
      }
    }
  }
};

void RunMuon(Problem& problem, const MuonOptions& options, int threads) {
  ThreadPool pool(threads);
  std::vector<MuonArgs> args;
  for (size_t i = 0; i < problem.p.size(); ++i) {
    args.push_back({problem.rows, problem.cols, problem.p[i].data(), problem.g[i].data(),
                    problem.momentum[i].data()});
  }
  const int64_t count = static_cast<int64_t>(args.size());
  const int64_t bytes = MuonWorkspaceBytes(problem.rows, problem.cols, count, threads);
  const std::unique_ptr<void, decltype(&std::free)> workspace(
      std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64)), &std::free);
  Muon(args.data(), count, options, workspace.get(), pool);
}

MuonOptions SomeOptions() {
  MuonOptions options;
  options.lr = 0.5f;
  options.decay = 0.125f;
  options.grad_scale = 0.75f;
  options.scale = 1.5f;
  return options;
}

// Frobenius norm of the difference over that of the expected update.
double UpdateError(const std::vector<float>& got, const std::vector<double>& expected,
                   const std::vector<float>& before, double keep) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += (got[i] - expected[i]) * (got[i] - expected[i]);
    const double update = expected[i] - keep * before[i];
    size += update * update;
  }
  return std::sqrt(difference / size);
}

void ComparesWithReference(int64_t rows, int64_t cols, int64_t count, const MuonOptions& options,
                           double tolerance) {
  for (const Isa isa : SupportedIsas()) {
    SetActiveIsa(isa);
    Problem problem(rows, cols, count, 3);
    const Problem before = problem;
    RunMuon(problem, options, 2);
    for (size_t i = 0; i < problem.p.size(); ++i) {
      const reference::MuonResult expected =
          reference::Muon(before.p[i], before.g[i], before.momentum[i], rows, cols, options);
      EXPECT_LT(UpdateError(problem.p[i], expected.p, before.p[i], 1 - options.decay), tolerance)
          << IsaName(isa) << " " << rows << "x" << cols;
      for (size_t x = 0; x < problem.momentum[i].size(); ++x) {
        // Three roundings of values below 4.
        ASSERT_NEAR(problem.momentum[i][x], expected.momentum[x], 3 * std::ldexp(4.0, -24));
      }
    }
  }
  SetActiveIsa(SupportedIsas().back());
}

// The error of fp32 that muon_kernels.cc derives: 2^-24 a^(2 (steps - 1)) |b| / a, and as much for the
// sums over the sides.
constexpr double kF32Tolerance = 3.2e-3;

TEST(Muon, FollowsTheFormula) {
  for (const bool nesterov : {true, false}) {
    MuonOptions options = SomeOptions();
    options.nesterov = nesterov;
    ComparesWithReference(24, 70, 3, options, kF32Tolerance);
    ComparesWithReference(70, 24, 2, options, kF32Tolerance);
    ComparesWithReference(33, 33, 1, options, kF32Tolerance);
    ComparesWithReference(1, 9, 2, options, kF32Tolerance);
  }
}

TEST(Muon, OtherCountsOfSteps) {
  for (const int steps : {0, 1, 2, 6, 11}) {
    MuonOptions options = SomeOptions();
    options.steps = steps;
    ComparesWithReference(20, 31, 2, options, kF32Tolerance);
  }
}

// bf16 rounds the factors by up to 2^-9 in each of five steps; a step multiplies what came before by
// up to a = 3.4 on directions still small, which are then small in the result as well.
TEST(Muon, Bf16StaysNearTheFormula) {
  MuonOptions options = SomeOptions();
  options.compute = Compute::kBf16;
  const double tolerance = 5 * 3 * 3.4445 * std::ldexp(1.0, -9);
  ComparesWithReference(24, 70, 3, options, tolerance);
  ComparesWithReference(70, 24, 2, options, tolerance);
}

// Gradients whose rows are scaled by factors that fall from 1 over `decades`.
Problem Graded(int64_t rows, int64_t cols, float decades) {
  Problem problem(rows, cols, 1, 11);
  problem.momentum[0].assign(problem.momentum[0].size(), 0.0f);
  for (int64_t i = 0; i < rows; ++i) {
    const float factor =
        std::pow(10.0f, -decades * static_cast<float>(i) / static_cast<float>(rows - 1));
    for (int64_t j = 0; j < cols; ++j) {
      problem.g[0][static_cast<size_t>(i * cols + j)] *= factor;
    }
  }
  return problem;
}

// Beside the formula in double, steps on the Gram matrix in bf16 are as exact as steps on X with
// every tensor rounded to bf16, or off by at most 0.07, however singular values spread.
TEST(Muon, Bf16IsAsExactAsStepsInBf16) {
  MuonOptions options;
  options.lr = 1;
  options.compute = Compute::kBf16;
  const struct {
    int64_t rows, cols;
    float decades;
  } cases[] = {{24, 70, 0}, {24, 70, 2}, {24, 70, 4}, {24, 70, 8}, {64, 256, 0},
               {64, 256, 3}, {256, 64, 6}, {48, 64, 3}, {128, 512, 0}, {128, 512, 2}};
  for (const auto& shape : cases) {
    const Problem before = Graded(shape.rows, shape.cols, shape.decades);
    const auto reference = [&](bool round) {
      return reference::Muon(before.p[0], before.g[0], before.momentum[0], shape.rows, shape.cols,
                             options, round);
    };
    const reference::MuonResult exact = reference(false), rounded = reference(true);
    const std::vector<float> usual(rounded.p.begin(), rounded.p.end());
    const double usual_error = UpdateError(usual, exact.p, before.p[0], 1);
    for (const Isa isa : SupportedIsas()) {
      SetActiveIsa(isa);
      Problem problem = before;
      RunMuon(problem, options, 2);
      EXPECT_LT(UpdateError(problem.p[0], exact.p, before.p[0], 1), std::max(usual_error, 0.07))
          << IsaName(isa) << " " << shape.rows << "x" << shape.cols << " " << shape.decades;
    }
    SetActiveIsa(SupportedIsas().back());
  }
}

TEST(Muon, SameBitsForAnyNumberOfThreadsAndBatch) {
  for (const Compute compute : {Compute::kF32, Compute::kBf16}) {
    MuonOptions options = SomeOptions();
    options.compute = compute;
    Problem one(90, 130, 5, 7);
    const Problem start = one;
    RunMuon(one, options, 1);
    for (int threads = 2; threads <= 4; ++threads) {
      Problem more = start;
      RunMuon(more, options, threads);
      EXPECT_EQ(one.p, more.p) << threads;
      EXPECT_EQ(one.momentum, more.momentum) << threads;
    }
    Problem last = start;
    last.p = {start.p[4]};
    last.g = {start.g[4]};
    last.momentum = {start.momentum[4]};
    RunMuon(last, options, 2);
    EXPECT_EQ(last.p[0], one.p[4]);
  }
}

// Five steps bring every singular value of a well-conditioned matrix between 0.65 and 1.25, so
// v^T X X^T v / v^T v lies between their squares for every v.
TEST(Muon, UpdateIsNearlyOrthogonal) {
  Problem problem(40, 160, 1, 5);
  problem.p[0].assign(problem.p[0].size(), 0.0f);
  MuonOptions options;
  options.lr = 1;
  RunMuon(problem, options, 2);
  for (int64_t v = 0; v < problem.rows; ++v) {
    double norm = 0;
    for (int64_t i = 0; i < problem.cols; ++i) {
      const double x = problem.p[0][static_cast<size_t>(v * problem.cols + i)];
      norm += x * x;
    }
    EXPECT_GT(norm, 0.65 * 0.65);
    EXPECT_LT(norm, 1.25 * 1.25);
  }
}

TEST(Muon, ZeroGradientGivesNoUpdate) {
  Problem problem(8, 12, 2, 5);
  for (auto* tensors : {&problem.g, &problem.momentum}) {
    for (auto& tensor : *tensors) tensor.assign(tensor.size(), 0.0f);
  }
  const Problem before = problem;
  MuonOptions options;
  options.lr = 1;
  RunMuon(problem, options, 1);
  EXPECT_EQ(problem.p, before.p);
}

// Gradients whose singular values span eight decades: the directions near zero, where the Gram form
// is least exact, stay within the derived error.
TEST(Muon, IllConditionedGradients) {
  Problem problem = Graded(32, 64, 8);
  const Problem before = problem;
  MuonOptions options;
  options.lr = 1;
  RunMuon(problem, options, 2);
  const reference::MuonResult expected = reference::Muon(
      before.p[0], before.g[0], before.momentum[0], problem.rows, problem.cols, options);
  EXPECT_LT(UpdateError(problem.p[0], expected.p, before.p[0], 1), kF32Tolerance);
}

}  // namespace
}  // namespace tessera::kernels
