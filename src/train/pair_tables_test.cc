#include "train/pair_tables.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "base/rng.h"
#include "data/test_util.h"

namespace tessera {
namespace {

PairCounts Random(int64_t vocab, int64_t empty_row) {
  const RngKey rng{.seed = 5, .purpose = RngPurpose::kSampling, .stream = 2};
  PairCounts counts;
  counts.vocab = vocab;
  counts.begin = {0};
  counts.totals.assign(static_cast<size_t>(vocab), 0);
  for (int64_t t = 0; t < vocab; ++t) {
    for (int32_t next = 0; next < vocab && t != empty_row; ++next) {
      const float u = rng.Uniform(static_cast<uint64_t>(t * vocab + next));
      if (u < 0.3f) continue;
      counts.next.push_back(next);
      counts.count.push_back(static_cast<int32_t>(1 + 60 * u * u * u));
      counts.totals[static_cast<size_t>(t)] += counts.count.back();
    }
    counts.begin.push_back(static_cast<int64_t>(counts.next.size()));
  }
  return counts;
}

// The least mean loss that any table can have: the entropy of the follower given the token.
double ConditionalEntropy(const PairCounts& counts) {
  double nats = 0, all = 0;
  for (int64_t t = 0; t < counts.vocab; ++t) {
    const size_t row = static_cast<size_t>(t);
    for (int64_t e = counts.begin[row]; e < counts.begin[row + 1]; ++e) {
      const double count = counts.count[static_cast<size_t>(e)];
      nats -= count * std::log(count / static_cast<double>(counts.totals[row]));
    }
    all += static_cast<double>(counts.totals[row]);
  }
  return nats / all;
}

struct Tables {
  std::vector<float> embedding, head;
};

Tables Start(int64_t vocab, int64_t width) {
  const RngKey rng{.seed = 9, .purpose = RngPurpose::kInit, .stream = 1};
  Tables tables;
  for (uint64_t i = 0; i < static_cast<uint64_t>(vocab * width); ++i) {
    tables.embedding.push_back(2 * rng.Uniform(i) - 1);
  }
  tables.head.assign(tables.embedding.size(), 0);
  return tables;
}

TEST(PairTables, CountsAreThoseOfTheConcatenation) {
  const TempFolder folder;
  BuildOptions options = CorpusOptions(folder, 40);
  ASSERT_TRUE(BuildDataset(options).ok());
  const auto stream = TokenStream::Open({.dataset = options.output / kTrainFolder});
  ASSERT_TRUE(stream.ok()) << stream.error().message;
  ThreadPool pool(2);
  const Result<PairCounts> counts = CountPairs(**stream, 257, int64_t{1} << 40, pool);
  ASSERT_TRUE(counts.ok()) << counts.error().message;
  std::vector<int32_t> tokens(static_cast<size_t>((*stream)->size()));
  ASSERT_TRUE((*stream)->Read(0, (*stream)->size(), tokens.data(), nullptr).ok());
  std::map<std::pair<int32_t, int32_t>, int32_t> expected;
  for (size_t i = 0; i + 1 < tokens.size(); ++i) ++expected[{tokens[i], tokens[i + 1]}];
  size_t entries = 0;
  int64_t pairs = 0;
  for (int32_t t = 0; t < 257; ++t) {
    int64_t total = 0;
    const size_t row = static_cast<size_t>(t);
    for (int64_t e = counts->begin[row]; e < counts->begin[row + 1]; ++e) {
      const auto pair = std::pair(t, counts->next[static_cast<size_t>(e)]);
      EXPECT_EQ(counts->count[static_cast<size_t>(e)], expected[pair]);
      total += counts->count[static_cast<size_t>(e)];
      ++entries;
    }
    EXPECT_EQ(counts->totals[row], total);
    pairs += total;
  }
  EXPECT_EQ(entries, expected.size());
  EXPECT_EQ(pairs, (*stream)->size() - 1);
  // Of a longer split pieces are counted.
  const Result<PairCounts> part = CountPairs(**stream, 257, 640, pool);
  ASSERT_TRUE(part.ok());
  EXPECT_EQ(part->tokens, 640);
  int64_t part_pairs = 0;
  for (const int64_t total : part->totals) part_pairs += total;
  EXPECT_EQ(part_pairs, 640 - 64);
}

// Only the right gradient leads to the entropy: any other stops above it.
TEST(PairTables, FitsReachTheConditionalEntropy) {
  ThreadPool pool(2);
  const PairCounts counts = Random(37, 5);
  for (const float softcap : {0.0f, 15.0f}) {
    for (const auto norm : {kernels::NormKind::kRmsNorm, kernels::NormKind::kLayerNorm}) {
      Tables tables = Start(37, 48);
      PairFitOptions options{.width = 48, .norm = norm, .softcap = softcap, .iterations = 1};
      // A head of zeros guesses every token alike.
      EXPECT_NEAR(FitPairTables(counts, options, tables.embedding.data(), tables.head.data(), pool),
                  std::log(37), 1e-4);
      tables = Start(37, 48);
      options.iterations = 400;
      const double loss =
          FitPairTables(counts, options, tables.embedding.data(), tables.head.data(), pool);
      const double least = ConditionalEntropy(counts);
      EXPECT_GT(loss, least - 1e-4);
      EXPECT_LT(loss, least + 0.01) << "softcap " << softcap;
    }
  }
}

TEST(PairTables, FitsEndWhenAsked) {
  ThreadPool pool(1);
  const PairCounts counts = Random(37, 5);
  Tables tables = Start(37, 16);
  int asked = 0;
  const PairFitOptions options{.width = 16, .go_on = [&](int done) {
                                 EXPECT_EQ(done, asked++);
                                 return done < 3;
                               }};
  FitPairTables(counts, options, tables.embedding.data(), tables.head.data(), pool);
  EXPECT_EQ(asked, 4);
}

TEST(PairTables, ThreadsDoNotChangeBitsAndOtherRowsStay) {
  const PairCounts counts = Random(300, 7);
  Tables first;
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    Tables tables = Start(300, 40);
    const Tables before = tables;
    const PairFitOptions options{.width = 40, .softcap = 15, .max_contexts = 200, .iterations = 5};
    FitPairTables(counts, options, tables.embedding.data(), tables.head.data(), pool);
    int64_t changed = 0;
    for (size_t row = 0; row < 300; ++row) {
      changed += !std::equal(tables.embedding.begin() + static_cast<long>(row) * 40,
                             tables.embedding.begin() + static_cast<long>(row + 1) * 40,
                             before.embedding.begin() + static_cast<long>(row) * 40);
    }
    EXPECT_EQ(changed, 200);
    EXPECT_TRUE(std::equal(tables.embedding.begin() + 7 * 40, tables.embedding.begin() + 8 * 40,
                           before.embedding.begin() + 7 * 40))
        << "a token without followers";
    if (threads == 1) {
      first = tables;
      continue;
    }
    EXPECT_TRUE(tables.embedding == first.embedding);
    EXPECT_TRUE(tables.head == first.head);
  }
}

}  // namespace
}  // namespace tessera
