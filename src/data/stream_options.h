// What a run file says about streamed datasets, in llm-foundry's words.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/mosaic_order.h"
#include "data/stream_weights.h"

namespace tessera {

// One entry of a run's `streams`.
struct StreamOptions {
  std::string name = {};
  std::string remote = {};  // Folder or URL (s3://, http://, https://); empty: `local` holds the data.
  // Where shards are kept. Empty: a remote folder of this machine is read in place, others are kept
  // in a folder for temporary files that is named after the remote.
  std::string local = {};
  std::string split = {};
  StreamWeight weight = {};
  int download_retry = 2;          // Further downloads of a shard that failed or arrived damaged.
  double download_timeout_s = 60;  // Of one download without progress.
  // The hash that shards must match: empty: one that the index has; "none": only sizes are checked.
  std::string validate_hash = {};
  bool keep_zip = false;  // Keep compressed files beside the raw ones.
};

// What a row of a batch is.
enum class RowKind {
  kAuto,     // Windows for datasets with documents.idx in the native order, samples otherwise.
  kWindows,  // Windows over the concatenation of all documents.
  kSamples,  // The stored samples, each cut or filled up, as llm-foundry has it.
};

// What a loader over streams does beyond one over a dataset.
struct StreamingOptions {
  RowKind rows = RowKind::kAuto;
  // native, or an order of mosaicml-streaming: py1e, py1s, py1br, py2s, naive.
  std::string shuffle_algo = "native";
  int64_t shuffle_block_size = 0;   // 0: 262,144 (mosaic orders: as they derive it).
  int64_t num_canonical_nodes = 0;  // Of mosaic orders; 0: as on one node.
  BatchingMethod batching_method = BatchingMethod::kRandom;
  int64_t device_batch = 0;  // For device_per_stream; 0: the whole batch.
  bool fixed_sampling = false;
  int64_t sampling_granularity = 1;  // Of mosaic orders.
  int64_t epoch_size = 0;            // Samples; 0: derived from the streams' weights.
  int64_t predownload = 0;           // Rows of this rank brought ahead; 0: 65,536 or 8 batches.
  int64_t cache_limit = 0;           // Bytes of all shards kept; 0: no limit.
  int download_threads = 8;
  // Samples of damaged or missing shards are replaced by others of the same stream, which are a
  // function of the seed and the sample; otherwise they end the run.
  bool replace_bad_samples = false;
  // Appends the ids of a text: for streams whose column holds text.
  std::function<void(std::string_view text, std::vector<int32_t>* ids)> encode = {};
};

}  // namespace tessera
