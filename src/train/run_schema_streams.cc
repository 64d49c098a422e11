// Keys of streamed datasets.
#include <algorithm>
#include <array>

#include "base/strings.h"
#include "store/object_store.h"
#include "train/run_schema.h"

namespace tessera {

namespace {

constexpr const char* kStreamKeys =
    "remote, local, split, proportion, repeat, choose, download_retry, download_timeout, "
    "validate_hash, keep_zip";

const std::vector<std::string>& StreamKeyNames() {
  static const std::vector<std::string> names = {
      "remote",         "local",            "split",         "proportion", "repeat", "choose",
      "download_retry", "download_timeout", "validate_hash", "keep_zip"};
  return names;
}

// One stream: REMOTE or a section. Starts from the values that hold for all streams.
class StreamReader {
 public:
  StreamReader(RunFileReading& reading, std::string where, StreamOptions stream,
               const YamlValue& value)
      : reading_(reading), where_(std::move(where)), value_(value), stream_(std::move(stream)) {}

  StreamOptions Read() {
    if (value_.kind == YamlValue::Kind::kMap) {
      for (const YamlMember& member : value_.members) ReadMember(member);
    } else {
      ReadText(value_, "remote", &stream_.remote);
    }
    const StreamWeight& weight = stream_.weight;
    if (weight.proportion.has_value() + weight.repeat.has_value() + weight.choose.has_value() > 1) {
      Fail(value_, "", "set at most one of proportion, repeat and choose");
    }
    if (stream_.remote.empty() && stream_.local.empty() && !failed_) {
      Fail(value_, "", "it has neither remote nor local; set remote: URL or FOLDER");
    }
    return stream_;
  }

 private:
  void Fail(const YamlValue& value, std::string_view key, std::string_view message) {
    failed_ = true;
    reading_.Fail(value, key.empty() ? where_ : fmt::format("{}.{}", where_, key), message);
  }

  void ReadText(const YamlValue& value, std::string_view key, std::string* out) {
    const std::optional<std::string> text = YamlText(value);
    if (!text.has_value()) return Fail(value, key, Expected(value, "a text"));
    *out = *text;
  }

  std::optional<double> ReadNumber(const YamlMember& member, double low, std::string_view what) {
    const std::optional<double> number = YamlNumber(member.value);
    if (!number.has_value() || !(*number >= low) || *number > 1e15) {
      Fail(member.value, member.key, Expected(member.value, what));
      return std::nullopt;
    }
    return number;
  }

  std::optional<int64_t> ReadInt(const YamlMember& member, int64_t high, std::string_view what) {
    const std::optional<int64_t> number = YamlInt(member.value);
    if (!number.has_value() || *number < 0 || *number > high) {
      Fail(member.value, member.key, Expected(member.value, what));
      return std::nullopt;
    }
    return number;
  }

  void ReadMember(const YamlMember& member) {
    const YamlValue& value = member.value;
    if (value.is_null()) return;
    if (member.key == "remote") return ReadText(value, member.key, &stream_.remote);
    if (member.key == "local") return ReadText(value, member.key, &stream_.local);
    if (member.key == "split") return ReadText(value, member.key, &stream_.split);
    if (member.key == "validate_hash") return ReadText(value, member.key, &stream_.validate_hash);
    if (member.key == "proportion") {
      stream_.weight.proportion = ReadNumber(member, 0, "a number, 0 or more");
      return;
    }
    if (member.key == "repeat") {
      stream_.weight.repeat = ReadNumber(member, 0, "a number, 0 or more");
      return;
    }
    if (member.key == "choose") {
      stream_.weight.choose = ReadInt(member, kLargestCount, "a number of samples, 0 or more");
      return;
    }
    if (member.key == "download_retry") {
      stream_.download_retry =
          static_cast<int>(ReadInt(member, 100, "an integer: 0 to 100").value_or(0));
      return;
    }
    if (member.key == "download_timeout") {
      stream_.download_timeout_s = ReadNumber(member, 0.001, "seconds, above 0").value_or(60);
      return;
    }
    if (member.key == "keep_zip") {
      const std::optional<bool> flag = YamlBool(value);
      if (!flag.has_value()) return Fail(value, member.key, Expected(value, "true or false"));
      stream_.keep_zip = *flag;
      return;
    }
    std::string message = fmt::format("unknown key; a stream has {}", kStreamKeys);
    if (const auto nearest = SuggestKey(member.key, StreamKeyNames())) {
      message += fmt::format(" (did you mean '{}'?)", *nearest);
    }
    Fail(value, member.key.substr(0, 60), message);
  }

  RunFileReading& reading_;
  std::string where_;
  const YamlValue& value_;
  StreamOptions stream_;
  bool failed_ = false;
};

bool IsStreamName(std::string_view name) {
  return !name.empty() && name.size() <= 100 && name.find_first_of("./ \t\n") == std::string::npos;
}

template <class Field>
RunKey StreamsKey(std::string path, Field field, std::string doc) {
  RunKey key{.path = path, .type = "section of streams", .doc = std::move(doc)};
  key.allowed = "NAME: REMOTE, or NAME: {" + std::string(kStreamKeys) + "}";
  key.whole_subtree = true;
  key.read = [field, path](RunFileReading& reading,
                           const YamlValue& value) -> std::optional<std::string> {
    if (value.kind != YamlValue::Kind::kMap) return Expected(value, "a section of NAME: REMOTE");
    std::vector<StreamOptions>& streams = field(reading.config);
    streams.clear();
    for (const YamlMember& member : value.members) {
      if (!IsStreamName(member.key)) {
        reading.Fail(member.value, path,
                     fmt::format("'{}' can't name a stream: leave out dots, slashes and blanks",
                                 member.key.substr(0, 60)));
        continue;
      }
      if (member.value.is_null()) continue;  // NAME=null on the command line takes a stream away
      StreamOptions stream = reading.config.data.stream_defaults;
      stream.name = member.key;
      streams.push_back(
          StreamReader(reading, path + "." + member.key, std::move(stream), member.value).Read());
    }
    // In the file's order: mosaicml-streaming numbers samples by it.
    return std::nullopt;
  };
  key.write = [field](const RunConfig& config) -> OrderedJson {
    if (field(config).empty()) return nullptr;
    OrderedJson map = OrderedJson::object();
    for (const StreamOptions& stream : field(config)) {
      OrderedJson entry = {{"remote", WithoutCredentials(stream.remote)}, {"local", stream.local}, {"split", stream.split}};
      if (stream.weight.proportion) entry["proportion"] = *stream.weight.proportion;
      if (stream.weight.repeat) entry["repeat"] = *stream.weight.repeat;
      if (stream.weight.choose) entry["choose"] = *stream.weight.choose;
      entry["download_retry"] = stream.download_retry;
      entry["download_timeout"] = stream.download_timeout_s;
      entry["validate_hash"] = stream.validate_hash;
      entry["keep_zip"] = stream.keep_zip;
      map[stream.name] = std::move(entry);
    }
    return map;
  };
  return key;
}

}  // namespace

void AddStreamKeys(std::vector<RunKey>* keys) {
  const auto add = [keys](RunKey key, std::string default_text = "") {
    if (!default_text.empty()) key.default_text = std::move(default_text);
    keys->push_back(std::move(key));
  };
  // Read before the streams, which start from these.
  add(IntKey(
      "data.download_retry", [](auto& c) -> auto& { return c.data.stream_defaults.download_retry; },
      {0, 100, "", 0}, "Further downloads of a shard that failed or arrived damaged; for all streams."));
  add(NumberKey(
      "data.download_timeout",
      [](auto& c) -> auto& { return c.data.stream_defaults.download_timeout_s; },
      {.low = 0, .open_low = true}, "Seconds without progress after which a download is broken off."));
  add(TextKey(
          "data.validate_hash",
          [](auto& c) -> auto& { return c.data.stream_defaults.validate_hash; },
          "The hash that shards must match: a name from the index, or none to check only sizes."),
      "one that the index has");
  add(BoolKey(
      "data.keep_zip", [](auto& c) -> auto& { return c.data.stream_defaults.keep_zip; },
      "Keep compressed shards beside the decompressed ones."));
  add(StreamsKey(
          "data.streams", [](auto& c) -> auto& { return c.data.streams; },
          "Datasets in MDS shards, mixed: remote is a folder, s3://BUCKET/PREFIX or http(s)://...; local "
          "is where its shards are kept. A weight (proportion, repeat or choose) as in "
          "mosaicml-streaming. See docs/streaming.md."),
      "none");
  add(StreamsKey(
          "data.eval_streams", [](auto& c) -> auto& { return c.data.eval_streams; },
          "One stream to evaluate on; it is fetched whole before the first step."),
      "none");
  add(ChoiceKey(
      "data.rows", [](auto& c) -> auto& { return c.data.streaming.rows; },
      std::vector<Choice<RowKind>>{{"auto", RowKind::kAuto},
                                   {"windows", RowKind::kWindows},
                                   {"samples", RowKind::kSamples}},
      "A row of a batch: windows over all documents joined, or one stored sample, as llm-foundry "
      "trains. auto: windows for datasets of `tessera data build` in the native order."));
  add(ChoiceKey(
      "data.shuffle_algo", [](auto& c) -> auto& { return c.data.streaming.shuffle_algo; },
      std::vector<Choice<std::string>>{{"native", "native"},
                                       {"py1e", "py1e"},
                                       {"py1s", "py1s"},
                                       {"py1br", "py1br"},
                                       {"py2s", "py2s"},
                                       {"naive", "naive"}},
      "Order of the streams' samples: Tessera's, or mosaicml-streaming's bit for bit."));
  add(IntKey(
      "data.shuffle_block_size",
      [](auto& c) -> auto& { return c.data.streaming.shuffle_block_size; },
      {1, int64_t{1} << 40, "auto", 0},
      "Samples among which one may trade places with any other; the shards of a block or two are in use "
      "at a time. auto: 262144, or what mosaicml-streaming derives."));
  add(IntKey(
      "data.num_canonical_nodes",
      [](auto& c) -> auto& { return c.data.streaming.num_canonical_nodes; },
      {1, int64_t{1} << 20, "auto", 0},
      "Of mosaicml-streaming's orders: the nodes of the run that is to be repeated."));
  add(ChoiceKey(
      "data.batching_method", [](auto& c) -> auto& { return c.data.streaming.batching_method; },
      std::vector<Choice<BatchingMethod>>{{"random", BatchingMethod::kRandom},
                                          {"stratified", BatchingMethod::kStratified},
                                          {"per_stream", BatchingMethod::kPerStream},
                                          {"device_per_stream", BatchingMethod::kDevicePerStream}},
      "Streams in a batch: mixed at random, always in the same parts, or one stream a batch."));
  add(ChoiceKey(
      "data.sampling_method", [](auto& c) -> auto& { return c.data.streaming.fixed_sampling; },
      std::vector<Choice<bool>>{{"balanced", false}, {"fixed", true}},
      "Which part of a stream an epoch takes: another one each time, or the same."));
  add(IntKey(
      "data.sampling_granularity",
      [](auto& c) -> auto& { return c.data.streaming.sampling_granularity; }, {1, kLargestCount, "", 0},
      "Of mosaicml-streaming's orders: samples taken from a shard at a time."));
  add(IntKey(
      "data.epoch_size", [](auto& c) -> auto& { return c.data.streaming.epoch_size; },
      {1, kLargestCount, "auto", 0}, "Samples of an epoch, for streams with proportions."));
  add(IntKey(
      "data.predownload", [](auto& c) -> auto& { return c.data.streaming.predownload; },
      {1, kLargestCount, "auto", 0},
      "Samples of each rank whose shards are fetched ahead. auto: 65536, or 8 batches if that is more."));
  add(BytesKey(
      "data.cache_limit", [](auto& c) -> auto& { return c.data.streaming.cache_limit; }, 1, "none",
      "Size of all streams' local shards together; the shard that is needed last goes first."));
  add(IntKey(
      "data.download_threads", [](auto& c) -> auto& { return c.data.streaming.download_threads; },
      {1, 256, "", 0}, "Shards fetched at a time."));
  add(BoolKey(
      "data.replace_bad_samples",
      [](auto& c) -> auto& { return c.data.streaming.replace_bad_samples; },
      "Go on with other samples of the stream, always the same ones, where a shard is damaged or missing "
      "for good; otherwise that is an error."));
}

}  // namespace tessera
