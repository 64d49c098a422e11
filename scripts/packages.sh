#!/usr/bin/env bash
# Installs the system packages that the build, the tests and the quickstart need (Debian 12,
# Ubuntu 22.04 and newer). Needs root or sudo only when something is missing; can be repeated.
#   scripts/packages.sh            installs what is missing
#   scripts/packages.sh --check    only says what is missing (exit 1)
#   scripts/packages.sh --tests    also valgrind, with which tests count instructions
set -euo pipefail

packages=(
  # Build and tests.
  g++ cmake ninja-build pkg-config ccache
  libfmt-dev nlohmann-json3-dev libyaml-cpp-dev libcli11-dev libssl-dev libxxhash-dev
  libzstd-dev liblzma-dev zlib1g-dev libbrotli-dev libbz2-dev libsnappy-dev libcurl4-openssl-dev
  libpugixml-dev libgtest-dev
  # The documents of the quickstart, and the compressors that it is compared with.
  python3-doc perl perl-doc gzip xz-utils
)

check_only=false
for option in "$@"; do
  case "$option" in
    --check) check_only=true ;;
    --tests) packages+=(valgrind) ;;
    *) echo "usage: scripts/packages.sh [--check] [--tests]" >&2; exit 2 ;;
  esac
done

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  echo "packages: this system has no apt; install the equivalents of: ${packages[*]}" >&2
  exit 1
fi

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Some base systems, container images above all, tell dpkg to leave documentation out
# (path-exclude=/usr/share/doc/*), so an installed package does not mean that its files are there.
python_doc_files() { compgen -G '/usr/share/doc/python3.*[0-9]/html/_sources/library/*.rst.txt' >/dev/null; }
perl_doc_files() { compgen -G '/usr/share/perl/5.*.*/pod/perlfunc.pod' >/dev/null; }

missing=()
for package in "${packages[@]}"; do
  installed "$package" || missing+=("$package")
done
reinstall=()
if installed python3-doc && ! python_doc_files; then
  # The files belong to the package of the default version, for instance python3.11-doc.
  mapfile -t reinstall < <(dpkg-query -W -f '${Depends}\n' python3-doc | grep -oE 'python3\.[0-9]+-doc' | sort -u)
fi
if installed perl-doc && ! perl_doc_files; then reinstall+=(perl-doc); fi

if [ ${#missing[@]} -eq 0 ] && [ ${#reinstall[@]} -eq 0 ]; then
  echo "packages: all ${#packages[@]} are installed"
  exit 0
fi
if $check_only; then
  echo "packages: missing: ${missing[*]} ${reinstall[*]/%/ (its files)}" >&2
  exit 1
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "packages: run as root, or install sudo; missing: ${missing[*]} ${reinstall[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
  # The quickstart's documents are kept also where the system leaves documentation out.
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -y -q \
    -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 \
    -o Dpkg::Options::=--path-include='/usr/share/doc/python3*' \
    -o Dpkg::Options::=--path-include='/usr/share/perl/*' \
    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \
    "$@" >>"$log" 2>&1 && return
  tail -n 30 "$log" >&2
  echo "packages: 'apt-get $*' failed (above); check the network and /etc/apt/sources.list*" >&2
  exit 1
}

echo "packages: installing ${missing[*]} ${reinstall[*]}"
apt update
[ ${#missing[@]} -eq 0 ] || apt install --no-install-recommends "${missing[@]}"
[ ${#reinstall[@]} -eq 0 ] || apt install --reinstall --no-install-recommends "${reinstall[@]}"

for package in "${packages[@]}"; do
  installed "$package" || { echo "packages: $package is still not installed" >&2; exit 1; }
done
python_doc_files || { echo "packages: python3-doc brought no html/_sources/*.rst.txt; the quickstart can't read its documents" >&2; exit 1; }
perl_doc_files || { echo "packages: perl-doc brought no pod/*.pod; the quickstart can't read its documents" >&2; exit 1; }
echo "packages: installed"
