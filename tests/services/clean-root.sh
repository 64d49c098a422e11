#!/usr/bin/env bash
# Tries the README's commands on a system that has nothing but Debian's base: debootstrap makes it
# under build/clean-root, the committed checkout is cloned into it, the commands run in a chroot.
#   tests/services/clean-root.sh                     scripts/quickstart.sh, then scripts/test.sh
#   tests/services/clean-root.sh 'COMMAND' ...       these shell commands instead
#   options before them: --suite bookworm   --without-docs (dpkg leaves documentation out, as in
#   container images)   --keep (leaves the system in place)
# Needs root and debootstrap. The system inside uses this machine's apt configuration and name
# resolution, so it installs wherever this machine can.
set -euo pipefail
cd "$(dirname "$0")/../.."
source_root=$PWD

suite=bookworm
without_docs=false
keep=false
while [ $# -gt 0 ]; do
  case "$1" in
    --suite) suite=$2; shift 2 ;;
    --without-docs) without_docs=true; shift ;;
    --keep) keep=true; shift ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "clean-root: unknown option '$1'; see --help" >&2; exit 2 ;;
    *) break ;;
  esac
done
if [ $# -eq 0 ]; then set -- scripts/quickstart.sh scripts/test.sh; fi
[ "$(id -u)" -eq 0 ] || { echo "clean-root: needs root (debootstrap and chroot)" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "clean-root: apt-get install debootstrap" >&2; exit 1; }

folder=$source_root/build/clean-root
base=$folder/$suite.tar
root=$folder/root
mkdir -p "$folder"

if [ ! -s "$base" ]; then
  # The archive that this machine's apt uses for the suite, or Debian's own.
  mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 2>/dev/null |
    awk -v suite="$suite" '$2 == suite { print $1; exit }')
  mirror=${mirror:-http://deb.debian.org/debian}
  echo "clean-root: debootstrap $suite from ${mirror##*@}"
  rm -rf "$folder/new"
  debootstrap --variant=minbase "$suite" "$folder/new" "$mirror" >"$folder/debootstrap.log" 2>&1 ||
    { tail -n 20 "$folder/debootstrap.log" >&2; exit 1; }
  tar -C "$folder/new" -cf "$base.tmp" .
  mv "$base.tmp" "$base"
  rm -rf --one-file-system "$folder/new"
fi

rm -rf --one-file-system "$root"
mkdir -p "$root"
tar -C "$root" -xf "$base"
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
if $without_docs; then
  printf 'path-exclude=/usr/share/doc/*\npath-include=/usr/share/doc/*/copyright\npath-exclude=/usr/share/man/*\n' \
    >"$root/etc/dpkg/dpkg.cfg.d/01-without-docs"
fi
git clone -q --no-hardlinks "$source_root" "$root/root/tessera"

# The mounts live in a namespace of their own and vanish with it, however this ends.
run_inside() {
  unshare --mount --pid --fork --kill-child bash -euc '
    root=$1 command=$2
    mount --bind /etc/apt "$root/etc/apt"
    mount -o remount,ro,bind "$root/etc/apt"
    # Certificates for archives that are reached over https.
    if [ -d /etc/ssl/certs ]; then
      mkdir -p "$root/etc/ssl/certs"
      mount --bind /etc/ssl/certs "$root/etc/ssl/certs"
      mount -o remount,ro,bind "$root/etc/ssl/certs"
    fi
    mount -t proc proc "$root/proc"
    mount --rbind --make-rslave /sys "$root/sys"
    mount --rbind --make-rslave /dev "$root/dev"
    exec chroot "$root" /usr/bin/env -i HOME=/root TERM="${TERM:-dumb}" LANG=C.UTF-8 \
      PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
      bash -c "cd /root/tessera && $command"
  ' bash "$root" "$1"
}

status=0
for command in "$@"; do
  echo "clean-root: $command"
  started=$SECONDS
  run_inside "$command" || status=$?
  echo "clean-root: '$command' ended with $status after $((SECONDS - started)) s"
  [ "$status" -eq 0 ] || break
done
if $keep; then
  echo "clean-root: the system is in $root"
else
  rm -rf --one-file-system "$root"
fi
exit "$status"
