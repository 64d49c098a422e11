#!/usr/bin/env bash
# Makes the Python environment .venv with the pinned programs of scripts/peers.txt, with which peer
# tests compare. About 6 GB; without it those tests are skipped. Can be repeated.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=$(sha256sum scripts/peers.txt | cut -d' ' -f1)
stamp=.venv/tessera-peers
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
  echo "peers: .venv is complete"
  exit 0
fi
python=${PYTHON:-python3}
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  echo "peers: installing python3-venv"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
echo "peers: installing the versions of scripts/peers.txt into .venv (some minutes)"
.venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -r scripts/peers.txt
.venv/bin/python -c 'import numpy, safetensors, streaming, tiktoken, tokenizers, torch, transformers'
# Written last: an interrupted installation is completed by the next call.
echo "$wanted" > "$stamp"
echo "peers: installed"
