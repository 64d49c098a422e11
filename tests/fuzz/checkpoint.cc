// Arbitrary bytes as the JSON files of a checkpoint: the first byte chooses manifest.json, config.json
// or state.json. json.dump() throws on text that is no UTF-8, which no parsed file may hold.
#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/hash.h"
#include "base/json.h"
#include "checkpoint/checkpoint.h"
#include "model/config.h"
#include "train/run_state.h"

using namespace tessera;

namespace {

// With the checksum that the content has, which a fuzzer would never find.
void Manifest(std::string_view text) {
  (void)ParseCheckpointManifest(text, "fuzz").ok();
  Result<Json> json = ParseJson(text, "fuzz");
  if (!json.ok() || !json->is_object()) return;
  json->erase("manifest_xxh3");
  (*json)["manifest_xxh3"] = fmt::format("{:016x}", Xxh3(json->dump()));
  const Result<CheckpointInfo> info = ParseCheckpointManifest(json->dump(), "fuzz");
  if (!info.ok()) return;
  for (const CheckpointFile& file : info->files) {
    // A name must stay inside the checkpoint's folder.
    if (file.bytes < 0 || file.name.empty() || file.name.find('/') != std::string::npos) std::abort();
  }
}

void Config(const Json& json) {
  const Result<ModelConfig> config = ModelConfigFromJson(json, "fuzz");
  if (config.ok() && !ModelConfigFromJson(ModelConfigToJson(*config), "again").ok()) std::abort();
}

void State(const Json& json) {
  const Result<RunState> state = RunStateFromJson(json, "fuzz");
  if (state.ok() && !RunStateFromJson(RunStateToJson(*state), "again").ok()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 3 == 0) {
    Manifest(text);
    return 0;
  }
  const Result<Json> json = ParseJson(text, "fuzz");
  if (json.ok()) (data[0] % 3 == 1 ? Config : State)(*json);
  return 0;
}
