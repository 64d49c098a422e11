#!/usr/bin/env bash
# Builds the release and runs the whole test suite. Options go to ctest:
#   scripts/test.sh                everything
#   scripts/test.sh -L unit        one label: unit, slow or peer
#   scripts/test.sh -R tokenizer   the tests whose name matches
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/packages.sh --tests
mkdir -p build
cmake --preset release -DTESSERA_TESTS=ON >build/configure.log 2>&1 || { cat build/configure.log >&2; exit 1; }
cmake --build --preset release
log=build/release/test-summary.log
status=0
ctest --preset release --no-tests=error -j "$(nproc)" "$@" | tee "$log" || status=$?
# The closing line: how many passed.
grep -E '^[0-9]+% tests passed' "$log" || echo "no test ran"
exit "$status"
