#!/usr/bin/env bash
# From a bare machine to a trained language model: packages, release build, then one training run on
# the documentation of Python and Perl (about 20 MB of technical prose). Can be repeated.
#   scripts/quickstart.sh                     3 minutes of training
#   scripts/quickstart.sh --seconds 60        a shorter one
#   scripts/quickstart.sh --json              the summary as JSON on stdout, all else on stderr
#   scripts/quickstart.sh model.d_model=384   any key of recipes/quickstart.yaml
set -euo pipefail
cd "$(dirname "$0")/.."

usage() { sed -n '2,7s/^# \{0,1\}//p' "$0"; }
fail() { echo "quickstart: $*" >&2; exit 2; }

json=false
overrides=()
while [ $# -gt 0 ]; do
  case "$1" in
    --seconds)
      [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || fail "--seconds needs a whole number, found '${2:-}'"
      overrides+=("max_duration=${2}sec")
      shift 2
      ;;
    --json) json=true; shift ;;
    -h | --help) usage; exit 0 ;;
    *=*) overrides+=("$1"); shift ;;
    *) fail "unknown option '$1'; see scripts/quickstart.sh --help" ;;
  esac
done
# The real stdout is kept for the summary; everything else is progress.
exec 3>&1
if $json; then exec 1>&2; fi

started=$SECONDS
phase() { printf '\n== %s  [%d s]\n' "$1" "$((SECONDS - started))"; }

phase "1/3 Packages"
scripts/packages.sh

phase "2/3 Release build"
mkdir -p build
cmake --preset release -DTESSERA_TESTS=OFF >build/configure.log 2>&1 || { cat build/configure.log >&2; exit 1; }
cmake --build --preset release
build_seconds=$((SECONDS - started))

phase "3/3 Tokenizer, dataset, training, evaluation, samples, report"
summary=runs/quickstart/summary.json
rm -f "$summary"
build/release/tessera train recipes/quickstart.yaml "${overrides[@]}"
[ -s "$summary" ] || { echo "quickstart: the run ended without $summary" >&2; exit 1; }

phase "Done: packages and build ${build_seconds} s, the rest $((SECONDS - started - build_seconds)) s"
cat <<'EOF'
Next:
  build/release/tessera generate runs/quickstart --prompt "The following example"
  build/release/tessera train recipes/quickstart.yaml data.sources.mine=PATH    # your own folder
  build/release/tessera doctor                                                  # what this machine can do
The report with the curves is runs/quickstart/report.html, the figures are runs/quickstart/summary.json.
EOF
if $json; then cat "$summary" >&3; fi
