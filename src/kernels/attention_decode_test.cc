#include <gtest/gtest.h>

#include <cmath>
#include <utility>
#include <vector>

#include "kernels/attention.h"
#include "kernels/attention_test_support.h"

namespace tessera::kernels {
namespace {

struct DecodeCall {
  DecodeCall(const Case& the_case, std::vector<int64_t> past_tokens, int64_t capacity_tokens)
      : c(the_case), past(std::move(past_tokens)), capacity(capacity_tokens) {
    q_stride = c.heads * c.head_size + 8;
    q = Tensor(c.dtype, c.batch * c.length * q_stride);
    out = Tensor(c.dtype, c.batch * c.length * q_stride);
    k = Tensor(c.dtype, c.batch * capacity * c.kv_heads * c.head_size);
    v = Tensor(c.dtype, k.size());
    for (int64_t i = 0; i < q.size(); ++i) q.Set(i, Value(1, i));
    // Beyond what is filled, the cache holds NaN: nobody may read it.
    const int64_t row = c.kv_heads * c.head_size;
    for (int64_t i = 0; i < k.size(); ++i) {
      const int64_t b = i / (capacity * row), j = i / row % capacity;
      const bool filled = j < past[static_cast<size_t>(b)] + c.length;
      k.Set(i, filled ? Value(2, i) : NAN);
      v.Set(i, filled ? Value(3, i) : NAN);
    }
    slopes.resize(static_cast<size_t>(c.heads));
    FillAlibiSlopes(c.heads, 8.0f, slopes.data());
  }
  static double Value(uint64_t stream, int64_t i) {
    return static_cast<double>(kData.Normal((stream << 42) + static_cast<uint64_t>(i)));
  }
  AttentionDecodeArgs Args() {
    AttentionDecodeArgs args;
    args.shape.batch = c.batch;
    args.shape.length = c.length;
    args.shape.heads = c.heads;
    args.shape.kv_heads = c.kv_heads;
    args.shape.head_size = c.head_size;
    args.shape.scale = 1.0f / std::sqrt(static_cast<float>(c.head_size));
    args.shape.window = c.window;
    args.shape.softcap = c.softcap;
    args.shape.alibi_slopes = c.alibi ? slopes.data() : nullptr;
    args.dtype = c.dtype;
    args.compute = c.compute;
    args.q = q.data();
    args.q_stride = q_stride;
    args.k_cache = k.data();
    args.v_cache = v.data();
    args.capacity = capacity;
    args.past = past.data();
    args.out = out.data();
    args.out_stride = q_stride;
    return args;
  }
  void Run(int threads) {
    ThreadPool pool(threads);
    const AttentionDecodeArgs args = Args();
    Workspace workspace(AttentionDecodeWorkspaceBytes(args, threads));
    AttentionDecode(args, workspace.get(), pool);
  }
  // Each sequence by itself, with as many keys as it has.
  void CheckAgainstReference() {
    for (int64_t b = 0; b < c.batch; ++b) {
      reference::AttentionProblem problem;
      problem.shape = Args().shape;
      problem.shape.batch = 1;
      problem.past = {past[static_cast<size_t>(b)]};
      problem.keys = problem.past[0] + c.length;
      const int64_t row = c.kv_heads * c.head_size;
      for (int64_t i = 0; i < problem.keys * row; ++i) {
        problem.k.push_back(k.At(b * capacity * row + i));
        problem.v.push_back(v.At(b * capacity * row + i));
      }
      std::vector<double> got;
      for (int64_t t = 0; t < c.length; ++t) {
        for (int64_t i = 0; i < c.heads * c.head_size; ++i) {
          problem.q.push_back(q.At((b * c.length + t) * q_stride + i));
          got.push_back(out.At((b * c.length + t) * q_stride + i));
        }
      }
      const std::vector<double> want = reference::AttentionForward(problem).out;
      Case as_forward = c;
      as_forward.length = problem.keys;
      ExpectClose(got, want, MakeBounds(as_forward).out, c.dtype, fmt::format("sequence {}", b));
    }
  }

  Case c;
  std::vector<int64_t> past;
  int64_t capacity, q_stride;
  Tensor q, k, v, out;
  std::vector<float> slopes;
};

TEST(AttentionDecode, MatchesTheReference) {
  OnEveryIsa([] {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      const Case cases[] = {
          {.batch = 3, .length = 1, .heads = 4, .kv_heads = 2, .head_size = 16, .dtype = dtype},
          {.batch = 3, .length = 1, .heads = 2, .kv_heads = 2, .head_size = 64, .dtype = dtype},
          {.batch = 3,
           .length = 3,
           .heads = 6,
           .kv_heads = 1,
           .head_size = 40,
           .dtype = dtype,
           .alibi = true},
          {.batch = 3,
           .length = 1,
           .heads = 8,
           .kv_heads = 1,
           .head_size = 24,
           .dtype = dtype,
           .window = 100,
           .softcap = 2.0f},
          {.batch = 3,
           .length = 2,
           .heads = 4,
           .kv_heads = 1,
           .head_size = 72,
           .dtype = dtype,
           .window = 600,
           .alibi = true},
          {.batch = 3, .length = 70, .heads = 3, .kv_heads = 1, .head_size = 8, .dtype = dtype},
          {.batch = 3, .length = 1, .heads = 1, .kv_heads = 1, .head_size = 256, .dtype = dtype},
      };
      for (const Case& c : cases) {
        SCOPED_TRACE(c.Name());
        DecodeCall call(c, {0, 63, 1200}, 1300);
        call.Run(2);
        call.CheckAgainstReference();
      }
    }
  });
}

TEST(AttentionDecode, PromptsInBf16MatchTheReference) {
  OnEveryIsa([] {
    const Case cases[] = {
        {.batch = 3, .length = 70, .heads = 3, .kv_heads = 1, .head_size = 8},
        {.batch = 3, .length = 65, .heads = 2, .kv_heads = 2, .head_size = 64},
        {.batch = 3, .length = 97, .heads = 2, .kv_heads = 1, .head_size = 40, .alibi = true},
        {.batch = 3,
         .length = 80,
         .heads = 2,
         .kv_heads = 2,
         .head_size = 24,
         .window = 100,
         .softcap = 2.0f},
    };
    for (Case c : cases) {
      c.dtype = DType::kBf16;
      c.compute = Compute::kBf16;
      SCOPED_TRACE(c.Name());
      DecodeCall call(c, {0, 63, 600}, 700);
      call.Run(2);
      call.CheckAgainstReference();
    }
  });
}

TEST(AttentionDecode, BitsDependNeitherOnThreadsNorOnTheBatch) {
  OnEveryIsa([] {
    const Case c = {.batch = 2, .length = 2, .heads = 4, .kv_heads = 2, .head_size = 16};
    DecodeCall one(c, {700, 1600}, 1700);
    one.Run(1);
    for (const int threads : {2, 3}) {
      DecodeCall many(c, {700, 1600}, 1700);
      many.Run(threads);
      EXPECT_TRUE(one.out == many.out);
    }
    // The first sequence alone.
    Case single = c;
    single.batch = 1;
    DecodeCall alone(single, {700}, 1700);
    alone.Run(2);
    for (int64_t i = 0; i < alone.out.size(); ++i) ASSERT_EQ(alone.out.At(i), one.out.At(i));
  });
}

TEST(AttentionDecode, GivesTheRowsOfForward) {
  OnEveryIsa([] {
    const Case c = {
        .batch = 1, .length = 90, .heads = 4, .kv_heads = 2, .head_size = 16, .alibi = true};
    Call forward(c);
    forward.Run(1, false);
    const std::vector<double> want =
        Call::Columns(forward.out, forward.out_stride, 0, c.heads * c.head_size);
    Case step = c;
    step.length = 1;
    for (int64_t t = 0; t < c.length; ++t) {
      DecodeCall decode(step, {t}, c.length);
      for (int64_t i = 0; i < c.heads * c.head_size; ++i) {
        decode.q.Set(i, forward.qkv.At(t * forward.stride + i));
      }
      const int64_t row = c.kv_heads * c.head_size;
      for (int64_t j = 0; j <= t; ++j) {
        for (int64_t i = 0; i < row; ++i) {
          const int64_t at = j * forward.stride + c.heads * c.head_size + i;
          decode.k.Set(j * row + i, forward.qkv.At(at));
          decode.v.Set(j * row + i, forward.qkv.At(at + row));
        }
      }
      decode.Run(1);
      const std::vector<double> got =
          Call::Columns(decode.out, decode.q_stride, 0, c.heads * c.head_size);
      for (size_t i = 0; i < got.size(); ++i) {
        // Two correct results: twice the bound of one, and the 12 deviations of ExpectClose.
        ASSERT_NEAR(got[i], want[static_cast<size_t>(t * c.heads * c.head_size) + i],
                    24 * MakeBounds(c).out);
      }
    }
  });
}

}  // namespace
}  // namespace tessera::kernels
