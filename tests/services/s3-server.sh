#!/usr/bin/env bash
# A real S3 server on loopback for tests and trials: Ceph's RADOS Gateway with all data in memory.
#   s3-server.sh install        the Debian packages that it needs (root or sudo)
#   s3-server.sh start [PORT]   prints the variables to export; PORT and PORT+1 are used, 7480 if absent
#   s3-server.sh stop
# Starting takes about 15 seconds. Its state lies in $S3_SERVER_DIR (/tmp/tessera-s3-server if unset)
# and is removed by stop. Exit code 77: the packages are missing.
set -euo pipefail

packages=(ceph-mon ceph-osd radosgw ceph-common curl)
folder=${S3_SERVER_DIR:-${TMPDIR:-/tmp}/tessera-s3-server}
access=testaccess
secret=testsecretkey

install_packages() {
  local as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  "${as_root[@]}" apt-get update -q
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=300 "${packages[@]}"
}

stop_server() {
  local file pid
  for file in "$folder"/*.pid; do
    [ -e "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || true
    for _ in {1..30}; do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
  done
  rm -rf "$folder"
}

write_configuration() {
  local port=$1 fsid=$2
  cat >"$folder/ceph.conf" <<CONF
[global]
fsid = $fsid
mon host = v1:127.0.0.1:$((port + 1))
mon initial members = a
ms bind msgr2 = false
ms bind ipv6 = false
public addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 4294967296
mon allow pool size one = true
mon data avail crit = 1
mon data = $folder/mon-\$id
osd data = $folder/osd-\$id
run dir = $folder
log file = $folder/\$name.log
admin socket = $folder/\$name.asok
pid file = $folder/\$name.pid
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:$port
rgw data = $folder/rgw
CONF
}

start_daemons() {
  local port=$1 fsid=$2 osd
  local conf=(-c "$folder/ceph.conf")
  osd=$(cat /proc/sys/kernel/random/uuid)
  monmaptool --create --addv a "[v1:127.0.0.1:$((port + 1))]" --fsid "$fsid" "$folder/monmap"
  ceph-mon "${conf[@]}" --mkfs -i a --monmap "$folder/monmap"
  ceph-mon "${conf[@]}" -i a
  [ "$(timeout 30 ceph "${conf[@]}" fsid)" = "$fsid" ] || return 1
  timeout 30 ceph "${conf[@]}" osd new "$osd"
  ceph-osd "${conf[@]}" -i 0 --mkfs --osd-uuid "$osd"
  ceph-osd "${conf[@]}" -i 0
  local deadline=$((SECONDS + 40))
  until timeout 10 ceph "${conf[@]}" osd stat | grep -q ' 1 up'; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.2
  done
  radosgw "${conf[@]}" -n client.rgw
  for _ in {1..300}; do
    curl -fs --noproxy '*' -o /dev/null "http://127.0.0.1:$port/" && break
    sleep 0.2
  done
  timeout 60 radosgw-admin "${conf[@]}" user create --uid=tessera --display-name=tessera \
    --access-key="$access" --secret-key="$secret"
}

start_server() {
  local port=${1:-7480} fsid program
  for program in ceph-mon ceph-osd radosgw radosgw-admin ceph curl; do
    command -v "$program" >/dev/null && continue
    echo "s3-server: $program is missing; run tests/services/s3-server.sh install" >&2
    exit 77
  done
  # On a loaded machine a daemon now and then meets another before that one is ready.
  local attempt started=false
  for attempt in 1 2 3; do
    stop_server
    mkdir -p "$folder"/{mon-a,osd-0,rgw}
    fsid=$(cat /proc/sys/kernel/random/uuid)
    write_configuration "$port" "$fsid"
    if start_daemons "$port" "$fsid" >"$folder/start.log" 2>&1 </dev/null; then
      started=true
      break
    fi
    echo "s3-server: attempt $attempt failed" >&2
    cat "$folder/start.log" >&2
  done
  if ! $started; then
    stop_server
    exit 1
  fi
  echo "export AWS_ACCESS_KEY_ID=$access AWS_SECRET_ACCESS_KEY=$secret AWS_REGION=us-east-1 AWS_ENDPOINT_URL=http://127.0.0.1:$port"
}

case ${1:-} in
  install) install_packages ;;
  start) start_server "${2:-}" ;;
  stop) stop_server ;;
  *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
