#!/usr/bin/env bash
# Counts the instructions of the key kernels again and writes tests/regression/instructions.json, after
# a change that is meant. Needs valgrind, and a processor with AVX2.
set -euo pipefail
cd "$(dirname "$0")/.."
cmake --preset release -DTESSERA_TESTS=ON >/dev/null
cmake --build --preset release --target regression_test
TESSERA_UPDATE_INSTRUCTIONS=1 build/release/tests/regression/regression_test --gtest_filter='*StayNear*'
git --no-pager diff --stat -- tests/regression/instructions.json
