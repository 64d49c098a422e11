#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "kernels/attention_test_support.h"

#if defined(__x86_64__)
namespace tessera::kernels {
namespace avx2_bf16_emulated {
void FillAttention(KernelTable& table);
}
namespace avx512_bf16_emulated {
void FillAttention(KernelTable& table);
}
namespace amx_emulated {
void FillAttention(KernelTable& table);
}
}  // namespace tessera::kernels
#endif

namespace tessera::kernels {
namespace {

void Check(const Case& c) {
  SCOPED_TRACE(c.Name());
  Call call(c);
  call.Run(2);
  const reference::AttentionProblem problem = call.Problem();
  const std::vector<double> dout =
      Call::Columns(call.dout, call.out_stride, 0, c.heads * c.head_size);
  const reference::AttentionOutput want = reference::AttentionForward(problem);
  const reference::AttentionGradients gradients = reference::AttentionBackward(problem, dout);
  const Bounds bounds = MakeBounds(c);
  ExpectClose(Call::Columns(call.out, call.out_stride, 0, c.heads * c.head_size), want.out,
              bounds.out, c.dtype, "out");
  ExpectClose({call.lse.begin(), call.lse.end()}, want.lse, bounds.lse, DType::kF32, "lse");
  ExpectClose(call.Part(call.dqkv, 0), gradients.dq, bounds.dq, c.dtype, "dq");
  ExpectClose(call.Part(call.dqkv, 1), gradients.dk, bounds.dk, c.dtype, "dk");
  ExpectClose(call.Part(call.dqkv, 2), gradients.dv, bounds.dv, c.dtype, "dv");
  // The padding between rows is nobody's.
  for (int64_t t = 0; t < c.batch * c.length; ++t) {
    for (int64_t i = 1; i <= 8; ++i) {
      const Tensor untouched(c.dtype, 1);
      ASSERT_EQ(call.out.At((t + 1) * call.out_stride - i), untouched.At(0));
      ASSERT_EQ(call.dqkv.At((t + 1) * call.stride - i), untouched.At(0));
    }
  }
}

// Runs `fn` under every set that multiplies bf16 pairs: the processor's own and those that emulate the
// dot or the tiles.
template <class Fn>
void OnEveryDot(const Fn& fn) {
#if defined(__x86_64__)
  const std::vector<Isa> isas = SupportedIsas();
  const auto supported = [&](Isa isa) {
    return std::find(isas.begin(), isas.end(), isa) != isas.end();
  };
  if (!supported(Isa::kAvx2)) GTEST_SKIP() << "this processor has no fused multiply-add";
  for (const Isa isa : {Isa::kAvx512Bf16, Isa::kAmx}) {
    if (!supported(isa)) continue;
    const Isa before = ActiveIsa();
    SetActiveIsa(isa);
    fn();
    SetActiveIsa(before);
  }
  const auto emulate = [&](Isa base, const char* name, void (*fill)(KernelTable&)) {
    if (!supported(base)) return;
    EmulatedKernels kernels{name};
    fill(kernels.table);
    g_emulated = &kernels;
    fn();
    g_emulated = nullptr;
  };
  emulate(Isa::kAvx2, "avx2_bf16_emulated", avx2_bf16_emulated::FillAttention);
  emulate(Isa::kAvx512, "avx512_bf16_emulated", avx512_bf16_emulated::FillAttention);
  emulate(Isa::kAvx512, "amx_emulated", amx_emulated::FillAttention);
#else
  GTEST_SKIP() << "bf16 dots are there on x86-64 alone";
#endif
}

Case Dot(Case c) {
  c.dtype = DType::kBf16;
  c.compute = Compute::kBf16;
  return c;
}

TEST(Attention, MatchesTheReferenceForEveryLengthAndHeadSize) {
  OnEveryIsa([] {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      for (const int64_t length : {1, 2, 3, 17, 64, 65, 130}) {
        for (const int64_t head_size : {8, 16, 40, 64, 128}) {
          if (length >= 65 && head_size == 128) continue;  // in the next test
          Check({.length = length, .head_size = head_size, .dtype = dtype});
        }
      }
    }
  });
}

TEST(Attention, MatchesTheReferenceForWideHeadsAndSeveralChunks) {
  OnEveryIsa([] {
    Check({.length = 130, .head_size = 128});
    Check({.length = 70, .head_size = 256, .dtype = DType::kBf16});
    Check({.length = 300, .head_size = 8});
    Check({.length = 2100, .heads = 1, .kv_heads = 1, .head_size = 8, .window = 100});
    Check({.length = 150, .head_size = 136, .documents = true});
  });
}

TEST(Attention, MatchesTheReferenceForGroupsAndBatches) {
  OnEveryIsa([] {
    Check({.batch = 2, .length = 40, .heads = 4, .kv_heads = 2, .head_size = 16});
    Check({.batch = 3,
           .length = 33,
           .heads = 3,
           .kv_heads = 1,
           .head_size = 24,
           .dtype = DType::kBf16});
    Check({.batch = 2, .length = 70, .heads = 5, .kv_heads = 5, .head_size = 8});
    Check({.length = 100, .heads = 8, .kv_heads = 1, .head_size = 32, .causal = false});
  });
}

TEST(Attention, MatchesTheReferenceForEveryMaskAndBias) {
  OnEveryIsa([] {
    for (int features = 0; features < 64; ++features) {
      Case c = {.batch = 2, .length = 97, .heads = 2, .kv_heads = 1, .head_size = 16};
      c.causal = (features & 1) == 0;
      c.window = (features & 2) != 0 ? 20 : 0;
      c.softcap = (features & 4) != 0 ? 1.5f : 0.0f;
      c.alibi = (features & 8) != 0;
      c.documents = (features & 16) != 0;
      c.dropout = (features & 32) != 0 ? 0.25f : 0.0f;
      c.dtype = (features % 3) == 0 ? DType::kBf16 : DType::kF32;
      Check(c);
    }
  });
}

TEST(AttentionOfPairs, MatchesTheReference) {
  OnEveryDot([] {
    for (const int64_t length : {1, 2, 3, 17, 64, 65, 130}) {
      for (const int64_t head_size : {8, 16, 24, 40, 64, 128}) {
        if (length >= 65 && head_size == 128) continue;
        Check(Dot({.length = length, .head_size = head_size}));
      }
    }
    Check(Dot({.length = 130, .head_size = 128}));
    Check(Dot({.length = 71, .head_size = 256, .causal = false}));
    // More keys than are packed together, and rows that see none of the first.
    Check(Dot({.length = 600, .heads = 1, .kv_heads = 1, .head_size = 256}));
    Check(Dot({.length = 600, .heads = 1, .kv_heads = 1, .head_size = 256, .window = 50}));
    Check(Dot({.length = 300, .head_size = 8}));
    Check(Dot({.length = 2101, .heads = 1, .kv_heads = 1, .head_size = 8, .window = 101}));
    Check(Dot({.batch = 3, .length = 33, .heads = 3, .kv_heads = 1, .head_size = 24}));
    Check(Dot({.batch = 2, .length = 70, .heads = 5, .kv_heads = 5, .head_size = 8}));
    Check(Dot({.length = 101, .heads = 8, .kv_heads = 1, .head_size = 32, .causal = false}));
    // More rows of a group than are packed together.
    Check(Dot({.length = 150, .heads = 8, .kv_heads = 1, .head_size = 128}));
    Check(Dot({.length = 130, .heads = 8, .kv_heads = 1, .head_size = 136, .window = 20}));
  });
}

TEST(AttentionOfPairs, MatchesTheReferenceForEveryMaskAndBias) {
  OnEveryDot([] {
    for (int features = 0; features < 64; ++features) {
      Case c = {.batch = 2, .length = 97, .heads = 2, .kv_heads = 1, .head_size = 16};
      c.causal = (features & 1) == 0;
      c.window = (features & 2) != 0 ? 21 : 0;
      c.softcap = (features & 4) != 0 ? 1.5f : 0.0f;
      c.alibi = (features & 8) != 0;
      c.documents = (features & 16) != 0;
      c.dropout = (features & 32) != 0 ? 0.25f : 0.0f;
      Check(Dot(c));
    }
  });
}

// The words of a pair meet in fixed places: neither threads nor the grouping of sequences move
// them.
TEST(AttentionOfPairs, BitsDependNeitherOnThreadsNorOnTheBatch) {
  OnEveryDot([] {
    const Case cases[] = {
        Dot({.batch = 3, .length = 301, .heads = 2, .kv_heads = 1, .head_size = 16}),
        Dot({.batch = 3,
             .length = 530,
             .heads = 2,
             .kv_heads = 2,
             .head_size = 8,
             .dropout = 0.1f}),
        Dot({.batch = 3, .length = 530, .heads = 1, .kv_heads = 1, .head_size = 256}),
        Dot({.batch = 3,
             .length = 97,
             .heads = 3,
             .kv_heads = 3,
             .head_size = 24,
             .documents = true}),
    };
    for (Case c : cases) {
      SCOPED_TRACE(c.Name());
      Call all(c);
      all.Run(1);
      for (const int threads : {2, 3, 5}) {
        Call many(c);
        many.Run(threads);
        EXPECT_TRUE(all.out == many.out) << threads << " threads";
        EXPECT_TRUE(all.lse == many.lse) << threads << " threads";
        EXPECT_TRUE(all.dqkv == many.dqkv) << threads << " threads";
      }
      c.batch = 1;
      Call second(c, 1);
      second.Run(2);
      for (int64_t i = 0; i < second.out.size(); ++i) {
        ASSERT_EQ(second.out.At(i), all.out.At(c.length * second.out_stride + i));
      }
      for (int64_t i = 0; i < second.dqkv.size(); ++i) {
        ASSERT_EQ(second.dqkv.At(i), all.dqkv.At(c.length * second.stride + i));
      }
    }
  });
}

// Where the processor has the instruction, emulating it gives its bits.
TEST(AttentionOfPairs, EmulationGivesTheBitsOfTheInstruction) {
  std::map<std::string, Tensor> gradients;
  OnEveryDot([&] {
    Call call(Dot({.batch = 2, .length = 130, .heads = 2, .kv_heads = 1, .head_size = 40}));
    call.Run(2);
    gradients[KernelsName()] = call.dqkv;
  });
  if (!gradients.contains("avx512_bf16")) GTEST_SKIP() << "this processor has no bf16 dot";
  EXPECT_TRUE(gradients["avx512_bf16"] == gradients["avx512_bf16_emulated"]);
  if (gradients.contains("amx")) {
    EXPECT_TRUE(gradients["amx"] == gradients["amx_emulated"]);
  }
}

TEST(Attention, LargeScoresStayFinite) {
  OnEveryIsa([] {
    // Scores of hundreds: every row's softmax is nearly one-hot, and exponents span the range.
    Check({.length = 130, .head_size = 64, .magnitude = 8});
    Check({.length = 130, .head_size = 64, .causal = false, .alibi = true, .magnitude = 4});
  });
  OnEveryDot([] { Check(Dot({.length = 130, .head_size = 64, .magnitude = 8})); });
}

TEST(Attention, RowsThatSeeNothingGiveZeros) {
  OnEveryIsa([] {
    Case c = {.length = 70, .head_size = 16, .documents = true};
    Call call(c);
    // Rows 10 to 20 may see from position 40 on only: nothing, as they come before it.
    for (size_t i = 10; i <= 20; ++i) call.starts[i] = 40;
    call.shape.segment_start = call.starts.data();
    call.Run(1);
    const reference::AttentionProblem problem = call.Problem();
    const reference::AttentionOutput want = reference::AttentionForward(problem);
    const reference::AttentionGradients gradients = reference::AttentionBackward(
        problem, Call::Columns(call.dout, call.out_stride, 0, c.head_size));
    const Bounds bounds = MakeBounds(c);
    ExpectClose(Call::Columns(call.out, call.out_stride, 0, c.head_size), want.out, bounds.out,
                c.dtype, "out");
    ExpectClose(call.Part(call.dqkv, 0), gradients.dq, bounds.dq, c.dtype, "dq");
    ExpectClose(call.Part(call.dqkv, 1), gradients.dk, bounds.dk, c.dtype, "dk");
    for (int64_t i = 0; i < c.head_size; ++i) EXPECT_EQ(call.out.At(12 * call.out_stride + i), 0);
    EXPECT_EQ(call.lse[12], -INFINITY);
  });
}

TEST(Attention, BitsDoNotDependOnThreads) {
  OnEveryIsa([] {
    const Case cases[] = {
        {.batch = 1, .length = 300, .heads = 2, .kv_heads = 1, .head_size = 16},
        {.batch = 3, .length = 530, .heads = 2, .kv_heads = 1, .head_size = 8, .dropout = 0.1f},
        {.batch = 1, .length = 2100, .head_size = 8, .dtype = DType::kBf16},
        {.batch = 3, .length = 65, .heads = 3, .kv_heads = 3, .head_size = 24, .alibi = true},
    };
    for (const Case& c : cases) {
      SCOPED_TRACE(c.Name());
      Call one(c);
      one.Run(1);
      for (const int threads : {2, 3, 5}) {
        Call many(c);
        many.Run(threads);
        EXPECT_TRUE(one.out == many.out) << threads << " threads";
        EXPECT_TRUE(one.lse == many.lse) << threads << " threads";
        EXPECT_TRUE(one.dqkv == many.dqkv) << threads << " threads";
      }
    }
  });
}

TEST(Attention, BitsDoNotDependOnHowSequencesAreGrouped) {
  OnEveryIsa([] {
    Case c = {.batch = 5,
              .length = 300,
              .heads = 2,
              .kv_heads = 2,
              .head_size = 16,
              .documents = true,
              .dropout = 0.2f};
    Call all(c);
    all.Run(2);
    int64_t first = 0;
    for (const int64_t batch : {1, 3, 1}) {
      c.batch = batch;
      Call part(c, first);
      part.Run(2);
      for (int64_t i = 0; i < part.out.size(); ++i) {
        ASSERT_EQ(part.out.At(i), all.out.At(first * c.length * part.out_stride + i));
      }
      for (int64_t i = 0; i < part.dqkv.size(); ++i) {
        ASSERT_EQ(part.dqkv.At(i), all.dqkv.At(first * c.length * part.stride + i));
      }
      first += batch;
    }
  });
}

TEST(Attention, LseMayBeNull) {
  OnEveryIsa([] {
    const Case c = {.length = 70, .head_size = 16};
    Call with(c), without(c);
    with.Run(1, false);
    AttentionForwardArgs args = without.ForwardArgs();
    args.lse = nullptr;
    ThreadPool pool(1);
    Workspace workspace(AttentionWorkspaceBytes(without.shape, 1));
    AttentionForward(args, workspace.get(), pool);
    EXPECT_TRUE(with.out == without.out);
  });
}

TEST(Attention, DropoutKeepsTheRightShareAndForwardAndBackwardAgree) {
  OnEveryIsa([] {
    // With V = 1 the output is sum of p keep / (1 - rate): mean 1, and with equal scores over T
    // keys a deviation of sqrt(rate / ((1 - rate) T)) a row.
    Case c = {.batch = 1,
              .length = 256,
              .heads = 4,
              .kv_heads = 4,
              .head_size = 8,
              .causal = false,
              .dropout = 0.3f};
    Call call(c);
    for (int64_t t = 0; t < c.length; ++t) {
      for (int64_t i = 0; i < c.heads * c.head_size; ++i) {
        call.qkv.Set(t * call.stride + i, 0.0);
        call.qkv.Set(t * call.stride + 2 * c.heads * c.head_size + i, 1.0);
      }
    }
    call.Run(2);
    double mean = 0;
    for (int64_t t = 0; t < c.length; ++t) {
      for (int64_t h = 0; h < c.heads; ++h) {
        mean += call.out.At(t * call.out_stride + h * c.head_size);
      }
    }
    const double rows = static_cast<double>(c.length * c.heads),
                 keys = static_cast<double>(c.length);
    mean /= rows;
    EXPECT_NEAR(mean, 1.0, 5 * std::sqrt(0.3 / 0.7 / (rows * keys)));
    // dV_j = sum over rows of p keep dO: with dO = 1 its total is the total of the output.
    Call ones(c);
    ones.qkv = call.qkv;
    for (int64_t i = 0; i < ones.dout.size(); ++i) ones.dout.Set(i, 1.0);
    ones.Run(2);
    double total = 0, out_total = 0;
    for (const double x : ones.Part(ones.dqkv, 2)) total += x;
    for (const double x : Call::Columns(ones.out, ones.out_stride, 0, c.heads * c.head_size)) {
      out_total += x;
    }
    // Both are sums of the same 2^18 products, each to about 2^-21 relative.
    EXPECT_NEAR(total, out_total, out_total * 0x1p-19);
  });
}

// Finite differences of the reference itself, in double: step h gives an error of h^2 times the
// third derivative plus 2^-53 / h; h = 1e-5 leaves about 1e-10, a million times below the
// gradients.
TEST(AttentionReference, GradientsAreThoseOfFiniteDifferences) {
  for (int features = 0; features < 8; ++features) {
    Case c = {.batch = 2, .length = 9, .heads = 4, .kv_heads = 2, .head_size = 8};
    c.softcap = (features & 1) != 0 ? 1.0f : 0.0f;
    c.alibi = (features & 2) != 0;
    c.dropout = (features & 4) != 0 ? 0.3f : 0.0f;
    c.window = features == 7 ? 4 : 0;
    c.causal = features != 2;
    c.documents = features >= 3;
    SCOPED_TRACE(c.Name());
    const Call call(c);
    reference::AttentionProblem problem = call.Problem();
    const std::vector<double> dout =
        Call::Columns(call.dout, call.out_stride, 0, c.heads * c.head_size);
    const auto loss = [&] {
      const std::vector<double> out = reference::AttentionForward(problem).out;
      double sum = 0;
      for (size_t i = 0; i < out.size(); ++i) sum += out[i] * dout[i];
      return sum;
    };
    const reference::AttentionGradients g = reference::AttentionBackward(problem, dout);
    const auto compare = [&](std::vector<double>& x, const std::vector<double>& gradient) {
      for (size_t i = 0; i < x.size(); i += 13) {
        const double at = x[i], h = 1e-5;
        x[i] = at + h;
        const double above = loss();
        x[i] = at - h;
        const double below = loss();
        x[i] = at;
        ASSERT_NEAR((above - below) / (2 * h), gradient[i], 1e-8) << i;
      }
    };
    compare(problem.q, g.dq);
    compare(problem.k, g.dk);
    compare(problem.v, g.dv);
  }
}

TEST(AlibiSlopes, FollowThePaperAndMpt) {
  std::vector<float> slopes(8);
  FillAlibiSlopes(8, 8.0f, slopes.data());
  for (size_t h = 0; h < 8; ++h) EXPECT_FLOAT_EQ(slopes[h], std::exp2(-static_cast<float>(h + 1)));
  // Six heads of eight slopes 2^-1 .. 2^-8: the even ones, then the odd ones.
  slopes.resize(6);
  FillAlibiSlopes(6, 8.0f, slopes.data());
  const float want[] = {0x1p-2f, 0x1p-4f, 0x1p-6f, 0x1p-8f, 0x1p-1f, 0x1p-3f};
  for (size_t h = 0; h < 6; ++h) EXPECT_FLOAT_EQ(slopes[h], want[h]);
}

}  // namespace
}  // namespace tessera::kernels
