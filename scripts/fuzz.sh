#!/usr/bin/env bash
# Builds the fuzz targets with clang under AddressSanitizer and UndefinedBehaviorSanitizer and runs
# them, one line each: target, runs, executions per second, coverage gained, result.
#   scripts/fuzz.sh                          every target, 1,000,000 inputs each
#   scripts/fuzz.sh mds_index --runs 50000   one target
#   scripts/fuzz.sh --jobs 8                 so many targets at a time (default: the processors)
# The corpus lies in build/fuzz/corpus/ and grows from run to run; tests/fuzz/seeds/ is where it
# begins. An input that fails is kept as build/fuzz/findings/<target>-*.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

# Short stacks of allocations and a small quarantine: twice the speed. To see more of a finding, run
# the target on it without these.
export ASAN_OPTIONS=malloc_context_size=3:quarantine_size_mb=16

runs=1000000
jobs=$(nproc)
targets=()
while [ $# -gt 0 ]; do
  case "$1" in
    --runs) runs=$2; shift 2 ;;
    --jobs) jobs=$2; shift 2 ;;
    --one) only=$2; shift 2 ;;  # of this script's own: run one target that is built
    -*) sed -n '2,8p' "$0"; exit 2 ;;
    *) targets+=("$1"); shift ;;
  esac
done

# The longest input: where a format's whole files are small, long inputs only cost speed.
longest() {
  case "$1" in
    tokenizer_json) echo 5000 ;;
    run_file | checkpoint | dataset_manifest | mds_index) echo 2048 ;;
    *) echo 512 ;;
  esac
}

run_one() {
  local name=$1 log=build/fuzz/log/$1.log
  local corpus=build/fuzz/corpus/$name
  mkdir -p "$corpus"
  local status=0 started=$SECONDS
  build/fuzz/tests/fuzz/fuzz_"$name" -runs="$runs" -max_len="$(longest "$name")" -timeout=10 \
    -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix=build/fuzz/findings/"$name"- \
    "$corpus" tests/fuzz/seeds/"$name" >"$log" 2>&1 || status=$?
  # From lines such as "#1024  INITED cov: 312 ft: 655 corp: 9/2048b exec/s: 512 rss: 60Mb".
  local covered executed seconds=$((SECONDS - started))
  covered=$(grep -E '^#[0-9]+' "$log" | sed -n 's/.*cov: \([0-9]*\).*/\1/p')
  executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  [ -n "$executed" ] || executed=$(grep -oE '^#[0-9]+' "$log" | tail -1 | tr -d '#')
  printf '%-18s %9s runs %7d/s   coverage %5s -> %5s   %s\n' "$name" "${executed:-0}" \
    $((${executed:-0} / (seconds > 0 ? seconds : 1))) "$(head -1 <<<"$covered")" \
    "$(tail -1 <<<"$covered")" "$([ "$status" -eq 0 ] && echo clean || echo "FAILED: $log")"
  return "$status"
}

if [ -n "${only:-}" ]; then
  run_one "$only"
  exit
fi

if [ ${#targets[@]} -eq 0 ]; then
  for seeds in tests/fuzz/seeds/*/; do targets+=("$(basename "$seeds")"); done
fi
mkdir -p build/fuzz/log build/fuzz/findings
cmake --preset fuzz >build/fuzz/log/configure.log 2>&1 || { cat build/fuzz/log/configure.log >&2; exit 1; }
cmake --build --preset fuzz --target "${targets[@]/#/fuzz_}" || exit 1
printf '%s\n' "${targets[@]}" | xargs -P "$jobs" -I{} "$0" --runs "$runs" --one {}
