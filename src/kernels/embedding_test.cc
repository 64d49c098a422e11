#include "kernels/embedding.h"

#include "kernels/op_test_support.h"
#include "kernels/reference/embedding.h"

namespace tessera::kernels {
namespace {

std::vector<int32_t> Tokens(int64_t rows, int64_t vocab) {
  const RngKey key = {11, RngPurpose::kShuffle, 0};
  std::vector<int32_t> tokens;
  for (int64_t r = 0; r < rows; ++r) {
    tokens.push_back(static_cast<int32_t>(key.Block(static_cast<uint64_t>(r))[0] % static_cast<uint32_t>(vocab)));
  }
  return tokens;
}

TEST(Embedding, ForwardGathersAndAddsOnce) {
  ForEachIsa([] {
    for (const DType table_dtype : kDTypes) {
      for (const DType dtype : kDTypes) {
        for (const int64_t width : {1, 17, 64, 257}) {
          for (const bool positions : {false, true}) {
            const int64_t rows = 33, length = 11, vocab = 13;
            const reference::EmbeddingShape shape = {rows, width, length, positions ? 2 : 0};
            const std::vector<int32_t> tokens = Tokens(rows, vocab);
            const Doubles table = RandomValues(vocab * width, 1, table_dtype),
                          position = RandomValues((length + 2) * width, 2, table_dtype);
            Buffer tables(table_dtype, table, 1), position_table(table_dtype, position, 3),
                y(dtype, rows * width, 1);
            EmbeddingForwardArgs args;
            args.rows = rows;
            args.width = width;
            args.length = length;
            args.tokens = tokens.data();
            args.table = tables.data();
            args.positions = positions ? position_table.data() : nullptr;
            args.table_dtype = table_dtype;
            args.first_position = shape.first_position;
            args.y = y.data();
            args.dtype = dtype;
            EmbeddingForward(args, PoolOf(2));
            Doubles want(static_cast<size_t>(rows * width));
            reference::EmbeddingForward(shape, tokens.data(), table.data(),
                                        positions ? position.data() : nullptr, want.data());
            // The sum in fp32, then one rounding: exactly what Rounded does.
            for (double& v : want) v = Rounded(v, dtype);
            EXPECT_EQ(y.Values(), want) << width;
            EXPECT_TRUE(y.GuardsIntact());
          }
        }
      }
    }
  });
}

struct Gradients {
  Doubles table, positions;
  bool operator==(const Gradients&) const = default;
};

Gradients RunBackward(const std::vector<int32_t>& tokens, int64_t width, int64_t length,
                      int64_t vocab, DType dtype, const Doubles& dy, ThreadPool& pool,
                      int64_t cut) {
  const int64_t rows = static_cast<int64_t>(tokens.size());
  Buffer dys(dtype, dy, 1), dtable(DType::kF32, RandomValues(vocab * width, 5), 1),
      dpositions(DType::kF32, RandomValues(length * width, 6), 3);
  for (int64_t first = 0; first < rows; first += cut) {
    EmbeddingBackwardArgs args;
    args.rows = std::min(cut, rows - first);
    args.width = width;
    args.length = length;
    args.tokens = tokens.data() + first;
    args.dy = dys.At(first * width);
    args.dtype = dtype;
    args.dtable = static_cast<float*>(dtable.data());
    args.dpositions = static_cast<float*>(dpositions.data());
    EmbeddingBackward(args, pool);
  }
  EXPECT_TRUE(dtable.GuardsIntact());
  EXPECT_TRUE(dpositions.GuardsIntact());
  return {dtable.Values(), dpositions.Values()};
}

TEST(Embedding, BackwardAddsChainsOverRows) {
  ForEachIsa([] {
    for (const DType dtype : kDTypes) {
      for (const int64_t width : {1, 17, 64, 257}) {
        const int64_t rows = 66, length = 11, vocab = 7;
        const std::vector<int32_t> tokens = Tokens(rows, vocab);
        const Doubles dy = RandomValues(rows * width, 1, dtype);
        Gradients want = {RandomValues(vocab * width, 5), RandomValues(length * width, 6)};
        reference::EmbeddingBackward({rows, width, length, 0}, tokens.data(), dy.data(),
                                     want.table.data(), want.positions.data());
        const Gradients got =
            RunBackward(tokens, width, length, vocab, dtype, dy, PoolOf(2), rows);
        // At most `rows` additions of values below 5.
        const double bound = static_cast<double>(rows) * static_cast<double>(rows) * 5 * kUnit;
        ExpectWithin(got.table, want.table, [&](size_t) { return bound; }, "dtable");
        ExpectWithin(got.positions, want.positions, [&](size_t) { return bound; }, "dpositions");
        for (const int threads : {1, 2, 3}) {
          for (const int64_t cut : {rows, length * 2, length}) {
            EXPECT_TRUE(RunBackward(tokens, width, length, vocab, dtype, dy, PoolOf(threads), cut) ==
                        got);
          }
        }
      }
    }
  });
}

TEST(Embedding, ReferenceGradientsAreTheSlopes) {
  const reference::EmbeddingShape shape = {8, 3, 4, 0};
  const std::vector<int32_t> tokens = Tokens(8, 5);
  Doubles table = RandomValues(15, 1), positions = RandomValues(12, 2);
  const Doubles dy = RandomValues(24, 3);
  Doubles dtable(15), dpositions(12);
  reference::EmbeddingBackward(shape, tokens.data(), dy.data(), dtable.data(), dpositions.data());
  const auto loss = [&] {
    Doubles y(24);
    reference::EmbeddingForward(shape, tokens.data(), table.data(), positions.data(), y.data());
    return Dot(y, dy);
  };
  ExpectSlopes(table, dtable, loss, "dtable");
  ExpectSlopes(positions, dpositions, loss, "dpositions");
}

}  // namespace
}  // namespace tessera::kernels
