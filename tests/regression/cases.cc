// One case of a key kernel or of the data path, for counting its instructions under callgrind:
//   regression_cases CASE      prepares it, then runs it once inside TesseraMeasured
//   regression_cases --list    the names
// Everything runs on one thread with fixed sizes, so a count depends on the code and compiler alone.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "base/files.h"
#include "base/memory.h"
#include "base/rng.h"
#include "base/threads.h"
#include "data/mds_reader.h"
#include "data/mds_writer.h"
#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/isa.h"
#include "kernels/loss.h"
#include "kernels/norm.h"
#include "kernels/optimizer.h"
#include "kernels/qkv.h"
#include "tokenizer/bpe_trainer.h"
#include "tokenizer/tokenizer.h"

// The function that callgrind is told to count (--toggle-collect); a C name and never inlined.
extern "C" [[gnu::noinline]] void TesseraMeasured(const std::function<void()>* body) { (*body)(); }

namespace tessera {
namespace {

using Body = std::function<void()>;

ThreadPool& Pool() {
  static ThreadPool pool(1);
  return pool;
}

// Memory of random floats in [-0.5, 0.5), or bf16 ones, that lives as long as the process.
template <class T = float>
T* Values(int64_t n) {
  static std::vector<MemoryRegion> regions;
  Result<MemoryRegion> region = MemoryRegion::Allocate(n * static_cast<int64_t>(sizeof(T)) + 256,
                                                       "a case", Pool());
  if (!region.ok()) throw ErrorException(region.error());
  regions.push_back(std::move(region).value());
  T* values = regions.back().as<T>();
  const RngKey key{regions.size(), RngPurpose::kCalibration, 0};
  for (int64_t i = 0; i < n; ++i) {
    const float value = key.Uniform(static_cast<uint64_t>(i)) - 0.5f;
    if constexpr (std::is_same_v<T, float>) {
      values[i] = value;
    } else {
      values[i] = ToBf16(value);
    }
  }
  return values;
}

template <class T>
constexpr DType TypeOf() {
  return std::is_same_v<T, float> ? DType::kF32 : DType::kBf16;
}

int32_t* Tokens(int64_t n, int32_t vocab) {
  auto* ids = new std::vector<int32_t>(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    (*ids)[static_cast<size_t>(i)] = static_cast<int32_t>((i * 2654435761) % vocab);
  }
  return ids->data();
}

enum class Form { kForward, kInput, kWeight };

// 256 rows through a layer from 192 to 320.
template <class T>
Body Product(Form form) {
  constexpr int64_t kRows = 256, kIn = 192, kOut = 320;
  auto args = std::make_shared<kernels::GemmArgs>();
  constexpr DType type = TypeOf<T>();
  args->c_dtype = type;
  if (form == Form::kForward) {
    args->m = kRows, args->n = kOut, args->k = kIn;
    args->a = {Values<T>(kRows * kIn), type, kIn, false};
    args->b = {Values<T>(kOut * kIn), type, kIn, true};
    args->bias = Values(kOut);
  } else if (form == Form::kInput) {
    args->m = kRows, args->n = kIn, args->k = kOut;
    args->a = {Values<T>(kRows * kOut), type, kOut, false};
    args->b = {Values<T>(kOut * kIn), type, kIn, false};
  } else {
    args->m = kOut, args->n = kIn, args->k = kRows;
    args->a = {Values<T>(kRows * kOut), type, kOut, true};
    args->b = {Values<T>(kRows * kIn), type, kIn, false};
    args->c_dtype = DType::kF32;
    args->accumulate = true;
  }
  args->ldc = args->n;
  args->c = Values(args->m * args->n);
  void* workspace = Values(kernels::GemmWorkspaceBytes(1) / 4);
  return [args, workspace] { kernels::Gemm(*args, workspace, Pool()); };
}

// One row against a matrix, as in decoding.
template <class T>
Body RowProduct() {
  auto args = std::make_shared<kernels::GemmArgs>();
  args->m = 1, args->n = 768, args->k = 768;
  args->a = {Values<T>(768), TypeOf<T>(), 768, false};
  args->b = {Values<T>(768 * 768), TypeOf<T>(), 768, true};
  args->c_dtype = TypeOf<T>();
  args->c = Values(768);
  args->ldc = 768;
  args->exact_chain = false;
  void* workspace = Values(kernels::GemmWorkspaceBytes(1) / 4);
  return [args, workspace] { kernels::Gemm(*args, workspace, Pool()); };
}

kernels::AttentionForwardArgs AttentionArgs() {
  kernels::AttentionForwardArgs args;
  args.shape.batch = 1;
  args.shape.length = 192;
  args.shape.heads = args.shape.kv_heads = 2;
  args.shape.head_size = 64;
  args.shape.scale = 0.125f;
  args.dtype = DType::kBf16;
  const bf16* qkv = Values<bf16>(192 * 3 * 128);
  args.q = qkv;
  args.k = qkv + 128;
  args.v = qkv + 256;
  args.q_stride = args.kv_stride = 3 * 128;
  args.out = Values<bf16>(192 * 128);
  args.out_stride = 128;
  args.lse = Values(2 * 192);
  return args;
}

Body AttentionForwardCase() {
  const kernels::AttentionForwardArgs args = AttentionArgs();
  void* workspace = Values(kernels::AttentionWorkspaceBytes(args.shape, 1) / 4);
  return [args, workspace] { kernels::AttentionForward(args, workspace, Pool()); };
}

Body AttentionBackwardCase() {
  kernels::AttentionBackwardArgs args;
  args.forward = AttentionArgs();
  args.dout = Values<bf16>(192 * 128);
  bf16* dqkv = Values<bf16>(192 * 3 * 128);
  args.dq = dqkv;
  args.dk = dqkv + 128;
  args.dv = dqkv + 256;
  void* workspace = Values(kernels::AttentionWorkspaceBytes(args.forward.shape, 1) / 4);
  kernels::AttentionForward(args.forward, workspace, Pool());
  return [args, workspace] { kernels::AttentionBackward(args, workspace, Pool()); };
}

Body AttentionDecodeCase() {
  kernels::AttentionDecodeArgs args;
  args.shape.batch = args.shape.length = 1;
  args.shape.heads = args.shape.kv_heads = 4;
  args.shape.head_size = 64;
  args.shape.scale = 0.125f;
  args.dtype = DType::kBf16;
  args.q = Values<bf16>(256);
  args.q_stride = 256;
  args.capacity = 512;
  args.k_cache = Values<bf16>(512 * 256);
  args.v_cache = Values<bf16>(512 * 256);
  args.past = new int64_t(500);
  args.out = Values<bf16>(256);
  args.out_stride = 256;
  void* workspace = Values(kernels::AttentionDecodeWorkspaceBytes(args, 1) / 4);
  return [args, workspace] { kernels::AttentionDecode(args, workspace, Pool()); };
}

constexpr int64_t kRows = 128, kWidth = 384;

kernels::NormForwardArgs NormArgs(kernels::NormKind kind) {
  kernels::NormForwardArgs args;
  args.kind = kind;
  args.rows = kRows;
  args.width = kWidth;
  args.dtype = DType::kBf16;
  args.x = Values<bf16>(kRows * kWidth);
  args.residual = Values<bf16>(kRows * kWidth);
  args.sum = Values<bf16>(kRows * kWidth);
  args.gain = Values(kWidth);
  args.y = Values<bf16>(kRows * kWidth);
  if (kind == kernels::NormKind::kLayerNorm) {
    args.bias = Values(kWidth);
    args.mean = Values(kRows);
  }
  args.rstd = Values(kRows);
  return args;
}

Body NormForwardCase(kernels::NormKind kind) {
  const kernels::NormForwardArgs args = NormArgs(kind);
  return [args] { kernels::NormForward(args, Pool()); };
}

Body NormBackwardCase(kernels::NormKind kind) {
  const kernels::NormForwardArgs forward = NormArgs(kind);
  kernels::NormForward(forward, Pool());
  kernels::NormBackwardArgs args;
  args.kind = kind;
  args.rows = kRows;
  args.width = kWidth;
  args.dtype = DType::kBf16;
  args.x = forward.sum;
  args.dy = Values<bf16>(kRows * kWidth);
  args.gain = forward.gain;
  args.mean = forward.mean;
  args.rstd = forward.rstd;
  args.dx = Values<bf16>(kRows * kWidth);
  args.accumulate_dx = true;
  args.dgain = Values(kWidth);
  if (kind == kernels::NormKind::kLayerNorm) args.dbias = Values(kWidth);
  const int64_t bytes = kernels::NormBackwardWorkspaceBytes(args.rows, args.width, args.sequence);
  return [args, workspace = Values(bytes / 4)] {
    kernels::NormBackward(args, workspace, Pool());
  };
}

Body ActivationCase(kernels::Activation activation, bool gated, bool backward, bool again = false) {
  kernels::ActivationArgs args;
  args.activation = activation;
  args.gated = gated;
  args.rows = kRows;
  args.width = kWidth;
  args.dtype = DType::kBf16;
  args.x = Values<bf16>(2 * kRows * kWidth);
  args.y = Values<bf16>(kRows * kWidth);
  args.dy = Values<bf16>(kRows * kWidth);
  args.dx = Values<bf16>(2 * kRows * kWidth);
  if (backward && !again) args.y = nullptr;
  if (backward) return [args] { kernels::ActivationBackward(args, Pool()); };
  return [args] { kernels::ActivationForward(args, Pool()); };
}

Body LossCase() {
  constexpr int64_t kVocab = 4096, kLossRows = 32;
  kernels::CrossEntropyArgs args;
  args.rows = kLossRows;
  args.vocab = kVocab;
  args.logits = Values(kLossRows * kVocab);
  args.ld = kVocab;
  args.targets = Tokens(kLossRows, kVocab);
  args.loss = Values(kLossRows);
  args.nll = Values(kLossRows);
  args.dlogits = args.logits;
  args.dlogits_dtype = DType::kBf16;
  args.dld = 2 * kVocab;
  return [args] { kernels::CrossEntropy(args, Pool()); };
}

Body AdamWCase() {
  kernels::AdamWArgs args;
  args.n = 100000;
  args.p = Values(args.n);
  args.g = Values(args.n);
  args.m = Values(args.n);
  args.v = Values(args.n);
  kernels::Scale(args.v, 0, args.n, Pool());
  args.lr = 1e-3f;
  return [args] { kernels::AdamW(args, Pool()); };
}

Body MuonCase() {
  kernels::MuonArgs args;
  args.rows = 96;
  args.cols = 128;
  args.p = Values(96 * 128);
  args.g = Values(96 * 128);
  args.momentum_buffer = Values(96 * 128);
  kernels::MuonOptions options;
  options.lr = 1e-3f;
  void* workspace = Values(kernels::MuonWorkspaceBytes(96, 128, 1, 1) / 4);
  return [=] { kernels::Muon(&args, 1, options, workspace, Pool()); };
}

Body EmbeddingCase(bool backward) {
  constexpr int64_t kVocab = 512;
  if (backward) {
    kernels::EmbeddingBackwardArgs args;
    args.rows = args.length = kRows;
    args.width = kWidth;
    args.tokens = Tokens(kRows, kVocab);
    args.dy = Values<bf16>(kRows * kWidth);
    args.dtype = DType::kBf16;
    args.dtable = Values(kVocab * kWidth);
    args.dpositions = Values(kRows * kWidth);
    return [args] { kernels::EmbeddingBackward(args, Pool()); };
  }
  kernels::EmbeddingForwardArgs args;
  args.rows = args.length = kRows;
  args.width = kWidth;
  args.tokens = Tokens(kRows, kVocab);
  args.table = Values<bf16>(kVocab * kWidth);
  args.positions = Values<bf16>(kRows * kWidth);
  args.table_dtype = args.dtype = DType::kBf16;
  args.y = Values<bf16>(kRows * kWidth);
  return [args] { kernels::EmbeddingForward(args, Pool()); };
}

Body QkvCase(bool backward) {
  kernels::QkvArgs args;
  args.rows = args.length = kRows;
  args.heads = args.kv_heads = 2;
  args.head_size = 64;
  args.dtype = DType::kBf16;
  args.in = Values<bf16>(kRows * kWidth);
  args.out = Values<bf16>(kRows * kWidth);
  args.norm = kernels::QkNorm::kRmsPerHead;
  args.rotary_size = 64;
  float* cos = Values(kRows * 32);
  float* sin = Values(kRows * 32);
  kernels::FillRopeTable({.positions = kRows, .rotary_size = 64}, cos, sin);
  args.cos = cos;
  args.sin = sin;
  if (!backward) return [args] { kernels::QkvForward(args, Pool()); };
  kernels::QkvBackwardArgs bargs;
  bargs.forward = args;
  bargs.dout = args.out;
  bargs.din = Values<bf16>(kRows * kWidth);
  return [bargs] { kernels::QkvBackward(bargs, Pool()); };
}

Body CastCase() {
  const float* x = Values(100000);
  bf16* y = Values<bf16>(100000);
  return [=] {
    kernels::CastToBf16(x, y, 100000, kernels::Rounding::kNearest, RngKey{}, 0, Pool());
  };
}

// Words of a small made-up language, so that the text depends on nothing outside.
std::string Text(int64_t words) {
  static constexpr const char* kParts[] = {"co", "ta", "ing", "ver", "lo", "se", "ra", "men",
                                           "de", "pro", "th", "e", "s", "ation", "un", "ble"};
  const RngKey key{5, RngPurpose::kCalibration, 0};
  std::string text;
  for (int64_t i = 0; i < words; ++i) {
    const auto block = key.Block(static_cast<uint64_t>(i));
    for (uint32_t part = 0; part <= block[0] % 3; ++part) text += kParts[block[part + 1] % 16];
    text += i % 13 == 12 ? ".\n" : i % 7 == 6 ? ", " : " ";
  }
  return text;
}

Body EncodeCase() {
  const std::string sample = Text(20000);
  const std::string_view view = sample;
  Result<Tokenizer> tokenizer = TrainBpe(std::span(&view, 1), {.vocab_size = 600, .num_threads = 1});
  if (!tokenizer.ok()) throw ErrorException(tokenizer.error());
  auto encoder = std::make_shared<Encoder>(*tokenizer);
  auto ids = std::make_shared<std::vector<int32_t>>();
  ids->reserve(1 << 16);
  const auto text = std::make_shared<std::string>(Text(3000));
  return [=] { encoder->Encode(*text, ids.get()); };
}

Body TrainTokenizerCase() {
  const auto text = std::make_shared<std::string>(Text(3000));
  return [text] {
    const std::string_view view = *text;
    const Result<Tokenizer> trained =
        TrainBpe(std::span(&view, 1), {.vocab_size = 400, .num_threads = 1});
    if (!trained.ok()) throw ErrorException(trained.error());
  };
}

Body ReadMdsCase() {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / fmt::format("tessera-regression-{}", ::getpid());
  const auto check = [](const Status& status) {
    if (!status.ok()) throw ErrorException(status.error());
  };
  {
    Result<MdsWriter> writer = MdsWriter::Create(
        {.folder = folder, .columns = {{"tokens", "ndarray:uint16"}}, .hashes = {}});
    if (!writer.ok()) throw ErrorException(writer.error());
    for (int64_t sample = 0; sample < 64; ++sample) {
      std::vector<int32_t> ids(256, static_cast<int32_t>(sample));
      std::string value;
      AppendMdsTokens(ids, 2, &value);
      const std::string_view view = value;
      check(writer->Write(std::span(&view, 1)));
    }
    check(writer->Finish());
  }
  Result<MdsReader> opened = MdsReader::Open(folder);
  if (!opened.ok()) throw ErrorException(opened.error());
  auto reader = std::make_shared<MdsReader>(std::move(opened).value());
  check(reader->Sample(0).ok() ? Status() : Status(Corrupt("no sample")));  // maps the shard
  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
  auto ids = std::make_shared<std::vector<int32_t>>(256);
  return [reader, ids] {
    std::vector<std::string_view> columns;
    for (int64_t sample = 0; sample < 64; ++sample) {
      const Status read = reader->Columns(sample, &columns);
      if (!read.ok()) throw ErrorException(read.error());
      const Result<MdsTokens> tokens = ParseMdsTokens("ndarray:uint16", columns[0]);
      if (!tokens.ok()) throw ErrorException(tokens.error());
      CopyMdsTokens(*tokens, 0, tokens->count, ids->data());
    }
  };
}

const std::map<std::string, std::function<Body()>>& Cases() {
  using kernels::Activation;
  using kernels::NormKind;
  static const std::map<std::string, std::function<Body()>> cases = {
      {"gemm.forward.fp32", [] { return Product<float>(Form::kForward); }},
      {"gemm.input.fp32", [] { return Product<float>(Form::kInput); }},
      {"gemm.weight.fp32", [] { return Product<float>(Form::kWeight); }},
      {"gemm.forward.bf16", [] { return Product<bf16>(Form::kForward); }},
      {"gemm.input.bf16", [] { return Product<bf16>(Form::kInput); }},
      {"gemm.weight.bf16", [] { return Product<bf16>(Form::kWeight); }},
      {"gemm.row.fp32", [] { return RowProduct<float>(); }},
      {"gemm.row.bf16", [] { return RowProduct<bf16>(); }},
      {"attention.forward", AttentionForwardCase},
      {"attention.backward", AttentionBackwardCase},
      {"attention.decode", AttentionDecodeCase},
      {"layernorm.forward", [] { return NormForwardCase(NormKind::kLayerNorm); }},
      {"layernorm.backward", [] { return NormBackwardCase(NormKind::kLayerNorm); }},
      {"rmsnorm.forward", [] { return NormForwardCase(NormKind::kRmsNorm); }},
      {"rmsnorm.backward", [] { return NormBackwardCase(NormKind::kRmsNorm); }},
      {"gelu.forward", [] { return ActivationCase(Activation::kGeluTanh, false, false); }},
      {"gelu.backward", [] { return ActivationCase(Activation::kGeluTanh, false, true); }},
      {"gelu.backward.y", [] { return ActivationCase(Activation::kGeluTanh, false, true, true); }},
      {"swiglu.forward", [] { return ActivationCase(Activation::kSilu, true, false); }},
      {"swiglu.backward", [] { return ActivationCase(Activation::kSilu, true, true); }},
      {"loss", LossCase},
      {"adamw", AdamWCase},
      {"muon", MuonCase},
      {"embedding.forward", [] { return EmbeddingCase(false); }},
      {"embedding.backward", [] { return EmbeddingCase(true); }},
      {"qkv.forward", [] { return QkvCase(false); }},
      {"qkv.backward", [] { return QkvCase(true); }},
      {"cast.bf16", CastCase},
      {"bpe.encode", EncodeCase},
      {"bpe.train", TrainTokenizerCase},
      {"mds.read", ReadMdsCase},
  };
  return cases;
}

int Main(int argc, char** argv) {
  const std::string name = argc == 2 ? argv[1] : "";
  if (name == "--list") {
    for (const auto& [known, make] : Cases()) fmt::print("{}\n", known);
    return 0;
  }
  if (name == "--isa") {
    fmt::print("{}\n", kernels::IsaName(kernels::ActiveIsa()));
    return 0;
  }
  const auto found = Cases().find(name);
  if (found == Cases().end()) {
    fmt::print(stderr, "usage: regression_cases CASE | --list | --isa\n");
    return 2;
  }
  const Body body = found->second();
  body();  // First calls fill caches and tables that later ones find.
  TesseraMeasured(&body);
  return 0;
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  try {
    return tessera::Main(argc, argv);
  } catch (const tessera::ErrorException& exception) {
    fmt::print(stderr, "regression_cases: {}\n", exception.error().message);
    return 1;
  }
}
