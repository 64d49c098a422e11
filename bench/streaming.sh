#!/usr/bin/env bash
# Training from streams beside training from the local folder: the same run, cold caches, turn by turn.
#   bench/streaming.sh [s3://bucket/prefix]
# http: through the proxy with 20 ms latency and 100 MB/s. failing: the same with 5% of the requests failing.
# With an S3 URL also from there, through the proxy; endpoint and keys come from AWS_ENDPOINT_URL,
# AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. STEPS and ROUNDS change the length. Prints JSON: the median
# time of a step behind the first 10 relative to the local run's, and the share of time that steps waited for
# data. Fails where a run's weights are not the local run's.
set -euo pipefail
s3=${1:-}
steps=${STEPS:-60} rounds=${ROUNDS:-2}
cd "$(dirname "$0")/.."
tessera=$PWD/build/release/tessera
proxy=$PWD/build/release/tests/services/fault_proxy
export no_proxy=127.0.0.1

work=$(mktemp -d)
proxies=() url_s3=
trap '[ ${#proxies[@]} -eq 0 ] || kill "${proxies[@]}" 2>/dev/null || true; rm -rf "$work"' EXIT
quiet() { "$@" >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; return 1; }; }

mkdir "$work/corpus"
for file in src/*/*.cc docs/*.md; do cp "$file" "$work/corpus/$(basename "$file").txt"; done
quiet "$tessera" tokenizer train "$work/corpus" --vocab-size 2048 -o "$work/tokenizer.json"
quiet "$tessera" data build --source "made=$work/corpus" --tokenizer "$work/tokenizer.json" -o "$work/dataset" \
  --validation-fraction 0.02 --shard-bytes 65536
cat >"$work/run.yaml" <<YAML
max_seq_len: 256
max_duration: ${steps}ba
global_train_batch_size: 8
precision: fp32
threads: 1
save_interval: 0ba
model: {name: mpt_causal_lm, d_model: 128, n_heads: 4, n_layers: 4}
optimizer: {name: adamw, lr: 1.0e-3}
report: false
loggers: {console: false}
YAML

start_proxy() {  # name, options: sets url_NAME
  local name=$1 log="$work/proxy-$1"
  shift
  "$proxy" "$@" >"$log" &
  proxies+=($!)
  until [ -s "$log" ]; do sleep 0.05; done
  declare -g "url_$name=$(cat "$log")"
}
slow=(--latency-ms 20 --megabytes-per-s 100)
failing=(--internal-error 0.0125 --slow-down 0.0125 --reset 0.0125 --truncate 0.0125)
start_proxy http --folder "$work/dataset" "${slow[@]}"
start_proxy failing --folder "$work/dataset" "${slow[@]}" "${failing[@]}"
kinds=(http failing)
if [ -n "$s3" ]; then
  upstream=${AWS_ENDPOINT_URL#*://}
  start_proxy s3 --upstream "${upstream%%/*}" "${slow[@]}"
  quiet "$tessera" store cp -r "$work/dataset/" "$s3/"
  kinds+=(s3)
fi

train() {  # kind, round
  local remote=$work/dataset cache=$work/cache-$1-$2 endpoint=${AWS_ENDPOINT_URL:-}
  case $1 in
    local) cache= ;;
    s3) remote=$s3 endpoint=$url_s3 ;;
    *) local name=url_$1; remote=${!name} ;;
  esac
  AWS_ENDPOINT_URL=$endpoint quiet "$tessera" train "$work/run.yaml" "save_folder=$work/$1-$2" \
    "data.streams={made: {remote: \"$remote\", local: \"$cache\", split: train}}"
}
values() { sed -n "s/.*\"$2\":\([0-9.e+-]*\).*/\1/p" "$1" | tail -n +11; }
median() { sort -g | awk '{v[NR] = $1} END {print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2}'; }

for ((round = 0; round < rounds; round++)); do
  for kind in local "${kinds[@]}"; do train "$kind" "$round"; done
done
step() { for ((r = 0; r < rounds; r++)); do values "$work/$1-$r/metrics.jsonl" seconds; done | median; }
waited() {
  for ((r = 0; r < rounds; r++)); do
    paste <(values "$work/$1-$r/metrics.jsonl" seconds) <(values "$work/$1-$r/metrics.jsonl" data_wait_seconds)
  done | awk '{s += $1; w += $2} END {print w / s}'
}
weights=ckpt-$(printf %08d "$steps")ba/weights.safetensors
base=$(step local)
rows=("  {\"from\": \"local folder\", \"step_s\": $base, \"relative\": 1, \"waited\": $(waited local)}")
for kind in "${kinds[@]}"; do
  for ((r = 0; r < rounds; r++)); do
    cmp "$work/local-0/$weights" "$work/$kind-$r/$weights" || { echo "streaming.sh: $kind differs" >&2; exit 1; }
  done
  rows+=("  {\"from\": \"$kind\", \"step_s\": $(step "$kind"), \"relative\": $(echo "$(step "$kind") $base" |
    awk '{print $1 / $2}'), \"waited\": $(waited "$kind")}")
done
(IFS=$'\n'; printf '[\n%s\n]\n' "$(echo "${rows[*]}" | sed '$!s/$/,/')")
