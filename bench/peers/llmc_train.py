#!/usr/bin/env python3
"""Tokens a second of llm.c's CPU trainer (its train_gpt2 at batch 4 x 64), from a checkout of yours:

  git clone https://github.com/karpathy/llm.c DIR
  gcc -Ofast -march=native -fopenmp -o DIR/train_gpt2 DIR/train_gpt2.c -lm
  bench/peers/llmc_train.py DIR [--steps 4] [--layers 12 --width 768 --heads 12 --vocab 50257]

The program reads a checkpoint and token files; random ones in its formats are written to a temporary
folder, in which it runs. Its first step is not counted. Prints JSON with the median.
"""
import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

import numpy as np

LENGTH, BATCH, CONTEXT = 64, 4, 1024  # fixed in the program; CONTEXT is the checkpoint's


def write_checkpoint(path, layers, width, heads, vocab):
    """Header of 256 int32: magic, version, context, vocabulary, layers, heads, width, padded
    vocabulary; then the parameters in fp32: token and position tables, per block two norms (gain,
    bias), qkv, projection, two layers of the MLP (matrix, bias each), the last norm."""
    padded = (vocab + 127) // 128 * 128
    header = np.zeros(256, np.int32)
    header[:8] = [20240326, 3, CONTEXT, vocab, layers, heads, width, padded]
    block = 12 * width * width + 13 * width
    count = padded * width + CONTEXT * width + layers * block + 2 * width
    random = np.random.default_rng(1)
    with open(path, "wb") as file:
        file.write(header.tobytes())
        while count > 0:
            part = min(count, 1 << 22)
            file.write((0.02 * random.standard_normal(part, np.float32)).tobytes())
            count -= part


def write_tokens(path, vocab):
    """Header of 256 int32: magic, version, number of tokens; then uint16 ids."""
    ids = np.random.default_rng(2).integers(0, vocab, 65536, dtype=np.uint16)
    header = np.zeros(256, np.int32)
    header[:3] = [20240520, 1, ids.size]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.tobytes() + ids.tobytes())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--vocab", type=int, default=50257)
    args = parser.parse_args()
    program = pathlib.Path(args.checkout).resolve() / "train_gpt2"
    if not program.exists():
        sys.exit(f"llmc_train.py: {program} does not exist: build it, see --help")
    if args.steps > 18:
        sys.exit("llmc_train.py: --steps is at most 18: from the 20th on the program writes samples")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_checkpoint(folder / "gpt2_124M.bin", args.layers, args.width, args.heads, args.vocab)
        for split in ("train", "val"):
            write_tokens(folder / f"dev/data/tinyshakespeare/tiny_shakespeare_{split}.bin", args.vocab)
        process = subprocess.Popen(["stdbuf", "-oL", str(program)], cwd=folder, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        seconds, seen = [], []
        try:
            for line in process.stdout:
                seen.append(line)
                found = re.match(r"step (\d+): train loss .*took ([\d.]+) ms", line)
                if found and int(found[1]) > 0:
                    seconds.append(float(found[2]) / 1000)
                if len(seconds) >= args.steps:
                    break
        finally:
            process.kill()
            process.wait()
    if len(seconds) < args.steps:
        sys.exit("llmc_train.py: the program ended early:\n" + "".join(seen[-5:]))
    print(json.dumps({"tokens_per_s": BATCH * LENGTH / statistics.median(seconds),
                      "step_seconds": statistics.median(seconds)}))


main()
