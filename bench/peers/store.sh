#!/usr/bin/env bash
# awscli and s3cmd of Debian beside `tessera store cp`: seconds to put and to get N objects of 1 MB.
#   bench/peers/store.sh s3://bucket/prefix [N] [ROUNDS]      1000 objects and 3 rounds if absent
# The endpoint and keys come from AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Each
# tool copies one folder with its own defaults; a tool that is not installed is left out. The tools take
# turns, another one first in each round, and what a turn stored is deleted after it. Prints JSON: the
# median over the rounds, every round's seconds, and the peer's median over ours.
set -euo pipefail
url=${1:?usage: bench/peers/store.sh s3://bucket/prefix [N] [ROUNDS]}
count=${2:-1000}
rounds=${3:-3}
: "${AWS_ENDPOINT_URL:?}" "${AWS_ACCESS_KEY_ID:?}" "${AWS_SECRET_ACCESS_KEY:?}"
cd "$(dirname "$0")/../.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/in"
head -c 1000000 /dev/urandom >"$folder/one"
for ((i = 0; i < count; i++)); do cp "$folder/one" "$folder/in/$(printf %06d "$i")"; done

host=${AWS_ENDPOINT_URL#*://}
host=${host%%/*}
umask 077
cat >"$folder/s3cmd.conf" <<CONF
[default]
access_key = $AWS_ACCESS_KEY_ID
secret_key = $AWS_SECRET_ACCESS_KEY
host_base = $host
host_bucket = $host
use_https = $([[ $AWS_ENDPOINT_URL == https:* ]] && echo True || echo False)
CONF

aws=/usr/bin/aws
tessera=build/release/tessera
tools=(tessera)
[ ! -x "$aws" ] || tools+=(awscli)
! command -v s3cmd >/dev/null || tools+=(s3cmd)

put() {
  case $1 in
    tessera) "$tessera" store cp -r "$folder/in/" "$url/tessera/" ;;
    awscli) "$aws" --endpoint-url "$AWS_ENDPOINT_URL" s3 cp --recursive "$folder/in" "$url/awscli/" ;;
    s3cmd) s3cmd -c "$folder/s3cmd.conf" put --recursive "$folder/in/" "$url/s3cmd/" ;;
  esac
}
get() {
  case $1 in
    tessera) "$tessera" store cp -r "$url/tessera/" "$folder/out" ;;
    awscli) "$aws" --endpoint-url "$AWS_ENDPOINT_URL" s3 cp --recursive "$url/awscli/" "$folder/out/" ;;
    s3cmd) mkdir "$folder/out" && s3cmd -c "$folder/s3cmd.conf" get --recursive "$url/s3cmd/" "$folder/out/" ;;
  esac
}
seconds() {
  local start end
  start=$(date +%s%N)
  "$@" >"$folder/log" 2>&1 || { tail -n 5 "$folder/log" >&2; return 1; }
  end=$(date +%s%N)
  awk -v ns=$((end - start)) 'BEGIN { printf "%.3f\n", ns / 1e9 }'
}

for ((round = 0; round < rounds; round++)); do
  for ((turn = 0; turn < ${#tools[@]}; turn++)); do
    tool=${tools[(round + turn) % ${#tools[@]}]}
    printf 'store.sh: round %d of %d, %s\n' "$((round + 1))" "$rounds" "$tool" >&2
    seconds put "$tool" >>"$folder/$tool.put"
    seconds get "$tool" >>"$folder/$tool.get"
    [ "$(find "$folder/out" -type f | wc -l)" -eq "$count" ] &&
      cmp -s "$folder/one" "$folder/out/000000" || { echo "store.sh: $tool's copy differs" >&2; exit 1; }
    rm -rf "$folder/out"
    "$tessera" store rm -r "$url/$tool/" >/dev/null
  done
done

median() { sort -g "$1" | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
list() { paste -sd, "$1" | sed 's/,/, /g'; }
ratio() { awk -v peer="$1" -v ours="$2" 'BEGIN { printf "%.2f", peer / ours }'; }
version() {
  case $1 in
    tessera) "$tessera" --version | head -n 1 ;;
    awscli) "$aws" --version | cut -d' ' -f1 ;;
    s3cmd) echo "s3cmd/$(s3cmd --version | cut -d' ' -f3)" ;;
  esac
}
our_put=$(median "$folder/tessera.put") our_get=$(median "$folder/tessera.get")
rows=()
for tool in "${tools[@]}"; do
  put_s=$(median "$folder/$tool.put") get_s=$(median "$folder/$tool.get")
  rows+=("$(printf '  {"tool": "%s", "objects": %d, "put_s": %s, "get_s": %s, "put_over_ours": %s, "get_over_ours": %s, "puts_s": [%s], "gets_s": [%s]}' \
    "$(version "$tool")" "$count" "$put_s" "$get_s" "$(ratio "$put_s" "$our_put")" \
    "$(ratio "$get_s" "$our_get")" "$(list "$folder/$tool.put")" "$(list "$folder/$tool.get")")")
done
(IFS=$'\n'; printf '[\n%s\n]\n' "$(echo "${rows[*]}" | sed '$!s/$/,/')")
