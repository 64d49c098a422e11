#!/usr/bin/env bash
# s3cmd and awscli of Debian beside `tessera bench store`: seconds to put and get N objects of 1 MB.
#   bench/peers/store.sh s3://bucket/prefix [N]      N is 1000 if absent
# The endpoint and keys come from AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Each
# tool copies one folder with its own defaults; a tool that is not installed is left out. Prints JSON.
set -euo pipefail
url=${1:?usage: bench/peers/store.sh s3://bucket/prefix [N]}
count=${2:-1000}
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
cat >"$folder/s3cmd" <<CONF
[default]
access_key = $AWS_ACCESS_KEY_ID
secret_key = $AWS_SECRET_ACCESS_KEY
host_base = $host
host_bucket = $host
use_https = $([[ $AWS_ENDPOINT_URL == https:* ]] && echo True || echo False)
CONF

seconds() {
  local start end
  start=$(date +%s.%N)
  "$@" >"$folder/log" 2>&1 || { tail -n 5 "$folder/log" >&2; return 1; }
  end=$(date +%s.%N)
  echo "$end - $start" | bc
}
row() {  # name, put seconds, get seconds
  printf '  {"tool": "%s", "objects": %d, "put_s": %s, "get_s": %s}' "$1" "$count" "$2" "$3"
}

rows=()
aws=/usr/bin/aws
if [ -x "$aws" ]; then
  put=$(seconds "$aws" --endpoint-url "$AWS_ENDPOINT_URL" s3 cp --recursive "$folder/in" "$url/awscli/")
  get=$(seconds "$aws" --endpoint-url "$AWS_ENDPOINT_URL" s3 cp --recursive "$url/awscli/" "$folder/aws-out/")
  rows+=("$(row "$("$aws" --version | cut -d' ' -f1)" "$put" "$get")")
fi
if command -v s3cmd >/dev/null; then
  put=$(seconds s3cmd -c "$folder/s3cmd" put --recursive "$folder/in/" "$url/s3cmd/")
  mkdir "$folder/s3cmd-out"
  get=$(seconds s3cmd -c "$folder/s3cmd" get --recursive "$url/s3cmd/" "$folder/s3cmd-out/")
  rows+=("$(row "s3cmd/$(s3cmd --version | cut -d' ' -f3)" "$put" "$get")")
fi
tessera=build/release/tessera
put=$(seconds "$tessera" store cp -r "$folder/in/" "$url/tessera/")
get=$(seconds "$tessera" store cp -r "$url/tessera/" "$folder/tessera-out")
rows+=("$(row "tessera store cp" "$put" "$get")")
cmp -s "$folder/one" "$folder/tessera-out/000000" || { echo "store.sh: the copy differs" >&2; exit 1; }
(IFS=$'\n'; printf '[\n%s\n]\n' "$(echo "${rows[*]}" | sed '$!s/$/,/')")
