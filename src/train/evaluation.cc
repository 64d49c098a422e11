#include "train/evaluation.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/signals.h"
#include "base/time.h"
#include "data/loader.h"

namespace tessera {

Json EvaluationToJson(const Evaluation& evaluation) {
  return {{"loss", evaluation.loss},
          {"perplexity", evaluation.perplexity},
          {"bits_per_byte", evaluation.bits_per_byte ? Json(*evaluation.bits_per_byte) : Json()},
          {"documents", evaluation.documents},
          {"targets", evaluation.targets},
          {"bytes", evaluation.bytes},
          {"seconds", evaluation.seconds}};
}

Result<Evaluation> Evaluate(Engine& engine, const EvaluationOptions& options) {
  EvalOptions stream_options;
  stream_options.dataset = options.dataset;
  stream_options.sequence_length = options.sequence_length;
  stream_options.batch_size = options.batch_size;
  stream_options.eos_id = options.eos_id;
  stream_options.vocab_size = options.vocab_size;
  stream_options.column = options.column;
  TESSERA_ASSIGN(const std::unique_ptr<EvalStream> stream, EvalStream::Open(stream_options));
  const int64_t total = options.max_batches < 0
                            ? stream->total_batches()
                            : std::min(options.max_batches, stream->total_batches());
  const Stopwatch watch;
  Evaluation result;
  double nll = 0;
  for (int64_t batch_index = 0; batch_index < total; ++batch_index) {
    if (StopRequested()) {
      return Error{.code = ErrorCode::kCancelled, .message = "stopped during the evaluation"};
    }
    TESSERA_ASSIGN(const TokenBatch* batch, stream->Next());
    if (batch == nullptr) break;
    StepBatch step;
    step.sequences = batch->rows;
    step.tokens = batch->tokens.data();
    step.targets = batch->targets.data();
    step.segment_start = batch->segment_start.empty() ? nullptr : batch->segment_start.data();
    nll += engine.Evaluate(step);
    result.targets += batch->target_count;
    result.bytes += batch->bytes_covered;
    if (options.progress) options.progress(batch_index + 1, total);
  }
  // Shares of bytes are rounded batch by batch; the whole split has an exact count.
  if (total == stream->total_batches()) result.bytes = stream->total_bytes();
  result.documents = stream->documents();
  result.seconds = watch.Seconds();
  if (result.targets == 0) {
    return InvalidArgument("the validation split holds no tokens to score");
  }
  result.loss = nll / static_cast<double>(result.targets);
  result.perplexity = std::exp(result.loss);
  if (result.bytes > 0) {
    result.bits_per_byte = nll / (std::numbers::ln2 * static_cast<double>(result.bytes));
  }
  return result;
}

}  // namespace tessera
