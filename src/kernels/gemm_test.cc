#include "kernels/gemm.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/rng.h"
#include "kernels/cpu/table.h"
#include "kernels/isa.h"
#include "kernels/reference/gemm.h"

#if defined(__x86_64__)
namespace tessera::kernels {
namespace avx2_bf16_emulated {
void FillGemm(KernelTable& table);
}
namespace avx512_bf16_emulated {
void FillGemm(KernelTable& table);
}
namespace amx_emulated {
void FillGemm(KernelTable& table);
}
}  // namespace tessera::kernels
#endif

namespace tessera::kernels {
namespace {

struct Variant {
  std::string name;
  KernelTable table = {};
  bool fused = true;  // has fused multiply-adds
  // How bf16 is multiplied as such, emulated or not: kSteps where it is widened.
  reference::ChainOrder order = reference::ChainOrder::kSteps;
};

// Every set that this machine runs, and those with the bf16 dot emulated.
const std::vector<Variant>& Variants() {
  static const std::vector<Variant> variants = [] {
    std::vector<Variant> all;
    const Isa active = ActiveIsa();
    for (const Isa isa : SupportedIsas()) {
      SetActiveIsa(isa);
      all.push_back({std::string(IsaName(isa)), ActiveTable(), isa != Isa::kGeneric,
                     isa == Isa::kAmx          ? reference::ChainOrder::kTiles
                     : isa == Isa::kAvx512Bf16 ? reference::ChainOrder::kPairs
                                               : reference::ChainOrder::kSteps});
    }
    SetActiveIsa(active);
#if defined(__x86_64__)
    const auto add_emulated = [&](Isa base, std::string name, void (*fill)(KernelTable&),
                                  reference::ChainOrder order) {
      const std::vector<Isa> isas = SupportedIsas();
      if (std::find(isas.begin(), isas.end(), base) == isas.end()) return;
      Variant emulated{std::move(name), {}, true, order};
      fill(emulated.table);
      all.push_back(std::move(emulated));
    };
    add_emulated(Isa::kAvx2, "avx2_bf16_emulated", avx2_bf16_emulated::FillGemm,
                 reference::ChainOrder::kPairs);
    add_emulated(Isa::kAvx512, "avx512_bf16_emulated", avx512_bf16_emulated::FillGemm,
                 reference::ChainOrder::kPairs);
    add_emulated(Isa::kAvx512, "amx_emulated", amx_emulated::FillGemm,
                 reference::ChainOrder::kTiles);
#endif
    return all;
  }();
  return variants;
}

// Pools of 1, 2 and 3 threads; making one also sets this thread to flush subnormals.
ThreadPool& Pool(int threads) {
  static std::unique_ptr<ThreadPool> pools[4];
  if (!pools[threads]) pools[threads] = std::make_unique<ThreadPool>(threads);
  return *pools[threads];
}

struct AlignedBytes {
  explicit AlignedBytes(int64_t bytes)
      : data(std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64))) {}
  ~AlignedBytes() { std::free(data); }
  AlignedBytes(const AlignedBytes&) = delete;
  AlignedBytes& operator=(const AlignedBytes&) = delete;
  void* data;
};

void* Workspace() {
  static const AlignedBytes bytes([] {
    int64_t most = 0;
    for (const Variant& variant : Variants()) {
      most = std::max(most, variant.table.gemm_workspace_bytes(3));
    }
    return most;
  }());
  return bytes.data;
}

template <class T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <class U>
  explicit LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t n) {
    return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t{64}));
  }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t{64}); }
  bool operator==(const LineAllocator&) const { return true; }
};

// A matrix in memory of exactly the size that its last row needs, so that the address sanitizer
// sees any read past it. It begins on a line of the cache.
struct Matrix {
  DType dtype = DType::kF32;
  int64_t rows = 0, cols = 0, ld = 0;
  std::vector<uint8_t, LineAllocator<uint8_t>> bytes;

  Matrix(DType type, int64_t num_rows, int64_t num_cols, int64_t pad, uint64_t seed)
      : dtype(type), rows(num_rows), cols(num_cols), ld(num_cols + pad) {
    const int64_t count = rows == 0 ? 0 : (rows - 1) * ld + cols;
    bytes.resize(static_cast<size_t>(count * DTypeBytes(dtype)));
    uint64_t state = seed * 0x9e3779b97f4a7c15ull + 1;
    for (int64_t i = 0; i < count; ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      Set(i, static_cast<float>(static_cast<int64_t>(state >> 40) - (1 << 23)) / (1 << 23));
    }
  }
  void Set(int64_t i, float value) {
    if (dtype == DType::kBf16) {
      reinterpret_cast<bf16*>(bytes.data())[i] = ToBf16(value);
    } else {
      reinterpret_cast<float*>(bytes.data())[i] = value;
    }
  }
  float Get(int64_t i) const {
    return dtype == DType::kBf16 ? ToFloat(reinterpret_cast<const bf16*>(bytes.data())[i])
                                 : reinterpret_cast<const float*>(bytes.data())[i];
  }
  float At(int64_t row, int64_t col) const { return Get(row * ld + col); }
};

enum class Packing { kNone, kF32, kBf16 };

struct Case {
  int64_t m = 1, n = 1, k = 1;
  bool a_transposed = false, b_transposed = false;
  DType a = DType::kF32, b = DType::kF32, c = DType::kF32;
  int64_t pad = 0;
  bool accumulate = false, bias = false, pre_activation = false;
  GemmEpilogue epilogue = GemmEpilogue::kNone;
  Packing packing = Packing::kNone;
  Compute compute = Compute::kF32;
  bool exact_chain = true;
  bool row_sums = false;

  std::string Name() const {
    return fmt::format(
        "m={} n={} k={} ta={} tb={} {}x{}->{} pad={} acc={} bias={} pre={} epi={} pack={} "
        "compute={} exact={} sums={}",
        m, n, k, a_transposed, b_transposed, DTypeName(a), DTypeName(b), DTypeName(c), pad,
        accumulate, bias, pre_activation, static_cast<int>(epilogue), static_cast<int>(packing),
        static_cast<int>(compute), exact_chain, row_sums);
  }
};

// Runs one case on every variant and pool and compares with both oracles.
void Check(const Case& test) {
  SCOPED_TRACE(test.Name());
  Pool(1);
  const Matrix a(test.a, test.a_transposed ? test.k : test.m, test.a_transposed ? test.m : test.k,
                 test.pad, 1);
  const Matrix b(test.b, test.b_transposed ? test.n : test.k, test.b_transposed ? test.k : test.n,
                 test.pad, 2);
  const Matrix c(test.c, test.m, test.n, test.pad, 3);
  const Matrix bias(DType::kF32, 1, test.n, 0, 4);
  // What the product takes where a packed B rounds fp32 to bf16.
  Matrix b_seen = b;
  if (test.packing == Packing::kBf16) {
    for (int64_t i = 0; i < static_cast<int64_t>(b.bytes.size()) / DTypeBytes(b.dtype); ++i) {
      b_seen.Set(i, ToFloat(ToBf16(b.Get(i))));
    }
  }
  GemmArgs args;
  args.m = test.m;
  args.n = test.n;
  args.k = test.k;
  args.a = {a.bytes.data(), test.a, a.ld, test.a_transposed};
  args.b = {b_seen.bytes.data(), test.b, b.ld, test.b_transposed};
  args.c = const_cast<uint8_t*>(c.bytes.data());
  args.c_dtype = test.c;
  args.ldc = c.ld;
  args.accumulate = test.accumulate;
  args.bias = test.bias ? reinterpret_cast<const float*>(bias.bytes.data()) : nullptr;
  args.epilogue = test.epilogue;
  args.compute = test.compute;
  args.exact_chain = test.exact_chain;
  const reference::GemmResult expected = reference::Gemm(args);
  const bool pairs_possible =
      test.compute == Compute::kBf16 && test.a == DType::kBf16 &&
      (test.packing == Packing::kNone ? test.b == DType::kBf16 : test.packing == Packing::kBf16);
  const bool chained =
      test.exact_chain || test.m > 4 || test.packing != Packing::kNone || test.row_sums;
  std::map<reference::ChainOrder, std::vector<float>> chains;
  for (const Variant& variant : Variants()) {
    const reference::ChainOrder order =
        pairs_possible ? variant.order : reference::ChainOrder::kSteps;
    if (!chains.contains(order)) chains[order] = reference::GemmChain(args, order);
  }
  args.b.data = b.bytes.data();
  // Sums of rows, and what stands behind them.
  const Matrix sums(DType::kF32, 1, test.m + 16, 0, 5);
  Matrix expected_sums = sums;
  for (int64_t i = 0; test.row_sums && i < test.m; ++i) {
    float sum = sums.Get(i);
    for (int64_t k = 0; k < test.k; ++k) sum += static_cast<float>(reference::Element(args.a, i, k));
    expected_sums.Set(i, sum);
  }

  for (const Variant& variant : Variants()) {
    SCOPED_TRACE(variant.name);
    AlignedBytes packed(64);
    if (test.packing != Packing::kNone) {
      const DType storage = test.packing == Packing::kBf16 ? DType::kBf16 : DType::kF32;
      const int64_t bytes = variant.table.packed_b_bytes(test.k, test.n, storage, test.compute);
      std::free(packed.data);
      packed.data = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
      variant.table.pack_b(args.b, test.k, test.n, storage, test.compute, packed.data, Pool(2));
      args.packed_b = packed.data;
    }
    Matrix first = c, first_before = c;
    for (int threads = 1; threads <= 3; ++threads) {
      Matrix out = c, before = c, own_sums = sums;
      args.c = out.bytes.data();
      args.row_sums = test.row_sums ? reinterpret_cast<float*>(own_sums.bytes.data()) : nullptr;
      args.pre_activation = test.pre_activation ? before.bytes.data() : nullptr;
      variant.table.gemm(args, Workspace(), Pool(threads));
      ASSERT_EQ(own_sums.bytes, expected_sums.bytes) << threads << " threads";
      if (threads == 1) {
        first = out;
        first_before = before;
      } else {
        ASSERT_EQ(first.bytes, out.bytes) << threads << " threads differ from one";
        ASSERT_EQ(first_before.bytes, before.bytes) << threads << " threads differ from one";
      }
    }
    // Nothing between the rows is written.
    for (int64_t i = 0; i + 1 < test.m; ++i) {
      for (int64_t j = test.n; j < c.ld; ++j) ASSERT_EQ(first.At(i, j), c.At(i, j));
    }
    const std::vector<float>& chain =
        chains[pairs_possible ? variant.order : reference::ChainOrder::kSteps];
    // Unit roundoff of fp32 is 2^-24; an unfused step rounds twice. Each step, the bias and the
    // first load add one rounding of at most the magnitude.
    const double steps = (variant.fused ? 1.0 : 2.0) * static_cast<double>(test.k) + 3;
    for (int64_t i = 0; i < test.m; ++i) {
      for (int64_t j = 0; j < test.n; ++j) {
        const size_t at = static_cast<size_t>(i * test.n + j);
        const double sum_error = steps * std::ldexp(expected.magnitude[at], -24);
        const double store = test.c == DType::kBf16 ? std::ldexp(1.0, -8) : 0;
        const double x = expected.before[at], y = expected.value[at];
        // The slope of the epilogues is at most 1.13, of relu^2 2|x|; their own error 1e-6.
        // What they are applied to is rounded to C's type.
        double error = sum_error;
        const double x_error = sum_error + store * (std::abs(x) + sum_error);
        if (test.epilogue == GemmEpilogue::kReluSquared) {
          error = (2 * std::abs(x) + x_error) * x_error + 1e-6 * std::abs(y);
        } else if (test.epilogue != GemmEpilogue::kNone) {
          error = 1.13 * x_error + 1e-6 * std::abs(y);
        }
        ASSERT_NEAR(first.At(i, j), y, error + store * (std::abs(y) + error))
            << "row " << i << " column " << j;
        if (test.pre_activation) {
          ASSERT_NEAR(first_before.At(i, j), x, x_error)
              << "row " << i << " column " << j;
        }
        if (!variant.fused || !chained) continue;
        float exact = chain[at];
        if (test.bias) exact += reinterpret_cast<const float*>(bias.bytes.data())[j];
        if (test.c == DType::kBf16) exact = ToFloat(ToBf16(exact));
        if (test.epilogue == GemmEpilogue::kNone) {
          ASSERT_EQ(first.At(i, j), exact) << "row " << i << " column " << j;
        }
        if (test.pre_activation) {
          ASSERT_EQ(first_before.At(i, j), exact) << "row " << i << " column " << j;
        }
      }
    }
    args.packed_b = nullptr;
  }
}

// Every option from the bits of a hash, so that a grid of shapes meets all their pairs.
Case WithOptions(int64_t m, int64_t n, int64_t k, uint64_t seed) {
  uint64_t bits = seed * 0x9e3779b97f4a7c15ull;
  bits ^= bits >> 29;
  bits *= 0xbf58476d1ce4e5b9ull;
  bits ^= bits >> 32;
  const auto take = [&bits](uint64_t choices) {
    const uint64_t choice = bits % choices;
    bits /= choices;
    return choice;
  };
  Case test;
  test.m = m;
  test.n = n;
  test.k = k;
  test.a_transposed = take(2) != 0;
  test.b_transposed = take(2) != 0;
  test.a = take(2) != 0 ? DType::kBf16 : DType::kF32;
  test.b = take(2) != 0 ? DType::kBf16 : DType::kF32;
  test.c = take(2) != 0 ? DType::kBf16 : DType::kF32;
  test.accumulate = test.c == DType::kF32 && take(2) != 0;
  test.bias = take(2) != 0;
  test.pad = take(2) != 0 ? 5 : 0;
  test.epilogue = static_cast<GemmEpilogue>(take(2) != 0 ? take(4) : 0);
  test.pre_activation = take(2) != 0;
  test.packing = static_cast<Packing>(take(3));
  test.exact_chain = take(2) != 0;
  if (test.a == DType::kBf16 && test.b == DType::kBf16 && take(2) != 0) {
    test.compute = Compute::kBf16;
    if (test.packing == Packing::kF32) test.packing = Packing::kBf16;
  }
  test.row_sums = take(2) != 0;
  return test;
}

// Sanitizers make the grids ten times as slow, and look at addresses, which a part of them reaches.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr uint64_t kGridStride = 13;  // Coprime to the grids' extents: every value still occurs.
#else
constexpr uint64_t kGridStride = 1;
#endif

TEST(Gemm, MatchesTheChainOnAGridOfShapes) {
  const std::vector<int64_t> sizes = {1, 2, 3, 5, 8, 16, 17, 31, 33, 64, 100, 257};
  uint64_t seed = 0;
  for (const int64_t m : sizes) {
    for (const int64_t n : sizes) {
      for (const int64_t k : sizes) {
        ++seed;
        if (seed % kGridStride != 0 || (m * n * k > 1000000 && seed % 4 != 0)) continue;
        Check(WithOptions(m, n, k, seed));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(Gemm, MatchesTheChainForEveryTransposeAndType) {
  for (uint64_t bits = 0; bits < 256; bits += kGridStride > 1 ? 3 : 1) {
    Case test;
    test.m = 30;
    test.n = 70;
    test.k = 41;
    test.a_transposed = (bits & 1) != 0;
    test.b_transposed = (bits & 2) != 0;
    test.a = (bits & 4) != 0 ? DType::kBf16 : DType::kF32;
    test.b = (bits & 8) != 0 ? DType::kBf16 : DType::kF32;
    test.c = (bits & 16) != 0 ? DType::kBf16 : DType::kF32;
    test.packing = static_cast<Packing>((bits >> 5) & 3);
    if (((bits >> 5) & 3) == 3) test.packing = Packing::kNone;
    test.compute = (bits & 128) != 0 ? Compute::kBf16 : Compute::kF32;
    if (test.compute == Compute::kBf16 &&
        (test.a == DType::kF32 || test.b == DType::kF32 || test.packing == Packing::kF32)) {
      continue;
    }
    Check(test);
    if (HasFatalFailure()) return;
  }
}

// Sizes past every block: several blocks of rows, columns and k, with the chain resting in C and
// in the fp32 buffer, A packed whole and block by block.
TEST(Gemm, MatchesTheChainAcrossBlocks) {
  struct Shape {
    int64_t m, n, k;
  };
  uint64_t seed = 77;
  for (const Shape& shape : {Shape{60, 300, 800}, Shape{90, 530, 385}, Shape{20, 1100, 500},
                             Shape{600, 40, 1500}, Shape{270, 36, 4500}}) {
    for (const DType out : {DType::kF32, DType::kBf16}) {
      for (int i = 0; i < 2; ++i) {
        Case test = WithOptions(shape.m, shape.n, shape.k, ++seed);
        test.c = out;
        test.accumulate = out == DType::kF32 && i == 0;
        Check(test);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Rows of A on lines of the cache, with whole steps of k, which tiles are loaded from where they lie:
// shared by few and by many columns, or owned; apart by what spreads them over a cache's sets and by
// multiples of 2 and 4 KB; a last sliver of some rows; k in one block, in several, in chunks.
TEST(Gemm, MatchesTheChainWhereRowsOfALieOnLines) {
  struct Shape {
    int64_t m, n, k, pad;
  };
  for (const Shape& shape :
       {Shape{64, 96, 32, 0}, Shape{70, 200, 96, 0}, Shape{33, 200, 1600, 0}, Shape{70, 130, 1024, 0},
        Shape{40, 100, 2048, 0}, Shape{40, 70, 1024, 1024}, Shape{65, 260, 768, 32},
        Shape{300, 40, 128, 0}, Shape{130, 33, 2048, 0}, Shape{5, 64, 64, 0}}) {
    for (int i = 0; i < 4; i += kGridStride > 1 ? 2 : 1) {
      Case test;
      test.m = shape.m;
      test.n = shape.n;
      test.k = shape.k;
      test.pad = shape.pad;
      test.a = test.b = DType::kBf16;
      test.c = i % 2 == 0 ? DType::kBf16 : DType::kF32;
      test.b_transposed = i < 2;
      test.accumulate = i == 1;
      test.bias = i != 1;
      test.epilogue = i == 2 ? GemmEpilogue::kGeluTanh : GemmEpilogue::kNone;
      test.pre_activation = i == 2;
      test.packing = i == 0 || i == 3 ? Packing::kBf16 : Packing::kNone;
      test.compute = Compute::kBf16;
      Check(test);
      if (HasFatalFailure()) return;
      test.packing = Packing::kNone;
      Check(test);
      if (HasFatalFailure()) return;
    }
  }
}

// Products large enough to be dealt out in shares that threads take from each other: B packed
// together at once or in phases of k, one or several groups of columns, or a B too wide for that, in
// every form and type.
TEST(Gemm, SharesHaveTheBitsOfOneThread) {
  struct Shape {
    int64_t m, n, k;
  };
  uint64_t seed = 500;
  for (const Shape& shape : {Shape{701, 300, 522}, Shape{61, 1500, 700}, Shape{1203, 65, 901},
                             Shape{299, 280, 5001}, Shape{64, 4100, 1201},
                             Shape{20, 12811, 171}}) {
    for (int i = 0; i < (kGridStride > 1 ? 2 : 6); ++i) {
      Case test = WithOptions(shape.m, shape.n, shape.k, ++seed);
      test.a_transposed = i % 2 == 0;
      if (i % 3 == 0) test.packing = Packing::kNone;
      SCOPED_TRACE(test.Name());
      const Matrix a(test.a, test.a_transposed ? test.k : test.m,
                     test.a_transposed ? test.m : test.k, test.pad, 1);
      const Matrix b(test.b, test.b_transposed ? test.n : test.k,
                     test.b_transposed ? test.k : test.n, test.pad, 2);
      const Matrix c(test.c, test.m, test.n, test.pad, 3);
      const Matrix bias(DType::kF32, 1, test.n, 0, 4);
      GemmArgs args;
      args.m = test.m;
      args.n = test.n;
      args.k = test.k;
      args.a = {a.bytes.data(), test.a, a.ld, test.a_transposed};
      args.b = {b.bytes.data(), test.b, b.ld, test.b_transposed};
      args.c_dtype = test.c;
      args.ldc = c.ld;
      args.accumulate = test.accumulate;
      args.bias = test.bias ? reinterpret_cast<const float*>(bias.bytes.data()) : nullptr;
      args.epilogue = test.epilogue;
      args.compute = test.compute;
      for (const Variant& variant : Variants()) {
        SCOPED_TRACE(variant.name);
        const DType storage = test.packing == Packing::kBf16 ? DType::kBf16 : DType::kF32;
        const AlignedBytes packed(
            variant.table.packed_b_bytes(test.k, test.n, storage, test.compute));
        if (test.packing != Packing::kNone) {
          variant.table.pack_b(args.b, test.k, test.n, storage, test.compute, packed.data, Pool(3));
          args.packed_b = packed.data;
        }
        Matrix first = c, first_before = c, first_sums(DType::kF32, 1, test.m, 0, 5);
        for (int threads = 1; threads <= 3; ++threads) {
          Matrix out = c, before = c, sums(DType::kF32, 1, test.m, 0, 5);
          args.c = out.bytes.data();
          args.row_sums = reinterpret_cast<float*>(sums.bytes.data());
          args.pre_activation = test.pre_activation ? before.bytes.data() : nullptr;
          variant.table.gemm(args, Workspace(), Pool(threads));
          if (threads == 1) {
            first = out;
            first_before = before;
            EXPECT_NE(first_sums.bytes, sums.bytes);
            first_sums = sums;
            EXPECT_NE(first.bytes, c.bytes);
          } else {
            ASSERT_EQ(first.bytes, out.bytes) << threads << " threads differ from one";
            ASSERT_EQ(first_before.bytes, before.bytes) << threads << " threads differ from one";
            ASSERT_EQ(first_sums.bytes, sums.bytes) << threads << " threads differ from one";
          }
        }
        args.packed_b = nullptr;
      }
    }
  }
}

// More steps of k than any set packs together.
TEST(Gemm, MatchesTheChainOverAVeryLongK) {
  for (const bool transposed : {false, true}) {
    Case test;
    test.m = 5;
    test.n = 7;
    test.k = (int64_t{24} << 20) / 64 + 45;
    test.a_transposed = transposed;
    test.b_transposed = !transposed;
    test.a = test.b = DType::kBf16;
    test.accumulate = true;
    test.bias = true;
    test.row_sums = transposed;
    test.compute = Compute::kBf16;
    Check(test);
  }
}

TEST(Gemm, EmptySums) {
  for (const DType out : {DType::kF32, DType::kBf16}) {
    Case test;
    test.m = 20;
    test.n = 40;
    test.k = 0;
    test.c = out;
    test.bias = true;
    Check(test);
    test.accumulate = out == DType::kF32;
    Check(test);
    test.packing = Packing::kF32;
    Check(test);
  }
}

TEST(Gemm, FewRowsInEveryForm) {
  uint64_t seed = 1000;
  for (int64_t m = 1; m <= 4; ++m) {
    for (const int64_t k : {1, 7, 64, 333}) {
      for (const int64_t n : {1, 5, 64, 2500}) {
        for (int i = 0; i < 4; ++i) {
          Case test = WithOptions(m, n, k, ++seed);
          if (seed % (kGridStride > 1 ? 3 : 1) != 0) continue;
          test.packing = Packing::kNone;
          test.b_transposed = (i & 1) != 0;
          test.exact_chain = (i & 2) != 0;
          Check(test);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

struct Product {
  Matrix a, b, c;
  GemmArgs args;
  Product(int64_t m, int64_t n, int64_t k, DType type, uint64_t seed)
      : a(type, m, k, 0, seed), b(type, k, n, 0, seed + 1), c(DType::kF32, m, n, 0, seed + 2) {
    args.m = m;
    args.n = n;
    args.k = k;
    args.a = {a.bytes.data(), type, a.ld, false};
    args.b = {b.bytes.data(), type, b.ld, false};
    args.ldc = c.ld;
    args.accumulate = true;
  }
};

TEST(Gemm, CutsOfRowsAndOfKGiveTheSameBits) {
  for (const Variant& variant : Variants()) {
    SCOPED_TRACE(variant.name);
    for (const Compute compute : {Compute::kF32, Compute::kBf16}) {
      Product product(100, 70, 900, DType::kBf16, 9);
      GemmArgs args = product.args;
      args.compute = compute;
      Matrix whole = product.c, rows = product.c, steps = product.c;
      args.c = whole.bytes.data();
      variant.table.gemm(args, Workspace(), Pool(2));
      for (int64_t row = 0; row < args.m;) {
        GemmArgs part = args;
        part.m = std::min<int64_t>(args.m - row, row == 0 ? 1 : 37);
        part.a.data = product.a.bytes.data() + row * product.a.ld * 2;
        part.c = rows.bytes.data() + row * args.ldc * 4;
        variant.table.gemm(part, Workspace(), Pool(2));
        row += part.m;
      }
      for (int64_t k = 0; k < args.k;) {
        GemmArgs part = args;
        const int64_t grain = variant.table.bf16_chain_grain;
        part.k = std::min<int64_t>(args.k - k, k == 0 ? grain : 512 + grain);
        part.a.data = product.a.bytes.data() + k * 2;
        part.b.data = product.b.bytes.data() + k * product.b.ld * 2;
        part.c = steps.bytes.data();
        variant.table.gemm(part, Workspace(), Pool(2));
        k += part.k;
      }
      EXPECT_EQ(whole.bytes, rows.bytes);
      EXPECT_EQ(whole.bytes, steps.bytes);
    }
  }
}

TEST(Gemm, NonFiniteValuesStayInTheirRowAndColumn) {
  for (const Variant& variant : Variants()) {
    SCOPED_TRACE(variant.name);
    Product product(31, 37, 20, DType::kF32, 5);
    product.args.accumulate = false;
    product.a.Set(30 * 20 + 3, std::numeric_limits<float>::infinity());
    product.b.Set(7 * 37 + 36, std::numeric_limits<float>::quiet_NaN());
    Matrix out = product.c;
    product.args.c = out.bytes.data();
    variant.table.gemm(product.args, Workspace(), Pool(1));
    for (int64_t i = 0; i < 31; ++i) {
      for (int64_t j = 0; j < 37; ++j) {
        EXPECT_EQ(std::isfinite(out.At(i, j)), i != 30 && j != 36) << i << " " << j;
      }
    }
  }
}

TEST(Gemm, SymmetricProductsHaveTheBitsOfPlainOnes) {
  const struct {
    DType type;
    Compute compute;
    DType c_type;
    bool accumulate;
  } forms[] = {{DType::kF32, Compute::kF32, DType::kF32, false},
               {DType::kF32, Compute::kF32, DType::kF32, true},
               {DType::kBf16, Compute::kF32, DType::kBf16, false},
               {DType::kBf16, Compute::kBf16, DType::kBf16, false},
               {DType::kBf16, Compute::kBf16, DType::kF32, true}};
  for (const Variant& variant : Variants()) {
    SCOPED_TRACE(variant.name);
    for (const int64_t size : {1, 5, 16, 33, 100, 300}) {
      for (const auto& form : forms) {
        for (const bool transposed : {false, true}) {
          const int64_t k = size == 33 ? 400 : 45;
          const Matrix x(form.type, transposed ? k : size, transposed ? size : k, 3, 8);
          GemmArgs args;
          args.m = args.n = size;
          args.k = k;
          args.a = {x.bytes.data(), form.type, x.ld, transposed};
          args.b = {x.bytes.data(), form.type, x.ld, !transposed};
          args.compute = form.compute;
          args.c_dtype = form.c_type;
          args.accumulate = form.accumulate;
          Matrix start(form.c_type, size, size, 2, 9);
          for (int64_t i = 0; i < size; ++i) {
            for (int64_t j = 0; j < i; ++j) start.Set(i * start.ld + j, start.At(j, i));
          }
          Matrix plain = start;
          args.ldc = plain.ld;
          args.c = plain.bytes.data();
          variant.table.gemm(args, Workspace(), Pool(1));
          args.symmetric = true;
          for (int threads = 1; threads <= 3; ++threads) {
            Matrix out = start;
            args.c = out.bytes.data();
            variant.table.gemm(args, Workspace(), Pool(threads));
            EXPECT_EQ(out.bytes, plain.bytes) << size << " with " << threads << " threads";
          }
          Matrix out = start;
          args.c = out.bytes.data();
          variant.table.gemm_batch(&args, 1, Workspace(), Pool(1));
          EXPECT_EQ(out.bytes, plain.bytes) << size;
        }
      }
    }
  }
}

TEST(GemmBatch, EqualsSingleProducts) {
  for (const Variant& variant : Variants()) {
    SCOPED_TRACE(variant.name);
    for (const int64_t count : {1, 2, 3, 5}) {
      std::vector<std::unique_ptr<Product>> products;
      std::vector<Matrix> single, batch;
      for (int64_t i = 0; i < count; ++i) {
        products.push_back(std::make_unique<Product>(60, 50, 70, DType::kF32, 10 * i + 1));
        single.push_back(products.back()->c);
        batch.push_back(products.back()->c);
      }
      std::vector<GemmArgs> args;
      for (size_t i = 0; i < products.size(); ++i) {
        products[i]->args.c = single[i].bytes.data();
        variant.table.gemm(products[i]->args, Workspace(), Pool(1));
        args.push_back(products[i]->args);
        args.back().c = batch[i].bytes.data();
      }
      variant.table.gemm_batch(args.data(), count, Workspace(), Pool(2));
      for (size_t i = 0; i < products.size(); ++i) EXPECT_EQ(single[i].bytes, batch[i].bytes);
    }
  }
}

TEST(MeasuredCompute, IsStableAndPlausible) {
  const ComputeChoice& choice = MeasuredCompute();
  EXPECT_GT(choice.f32_gflops, 0.1);
  EXPECT_EQ(&choice, &MeasuredCompute());
  if (std::getenv("TESSERA_COMPUTE") == nullptr) {
    EXPECT_EQ(choice.compute == Compute::kBf16, choice.bf16_gflops >= 1.2 * choice.f32_gflops);
  }
}

}  // namespace
}  // namespace tessera::kernels
