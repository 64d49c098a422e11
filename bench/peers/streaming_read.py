#!/usr/bin/env python3
"""Samples a second of mosaicml-streaming from an MDS dataset in a local folder, one process.

  .venv/bin/python bench/peers/streaming_read.py FOLDER [--seconds 3]
  .venv/bin/python bench/peers/streaming_read.py FOLDER --make 8192     writes the dataset first

--make writes samples of 2,048 int32 tokens with MDSWriter. Prints JSON: access by index in stored
order and at random (no DataLoader, no workers: the reader alone), and the whole shuffled path
through an iterator. `tessera bench load --dataset FOLDER` measures the same things.
"""
import argparse
import json
import time
import warnings

import numpy as np

warnings.simplefilter("ignore")
from streaming import MDSWriter, StreamingDataset  # noqa: E402
from streaming.base.util import clean_stale_shared_memory  # noqa: E402

TOKENS = 2048


def make(folder, samples):
    random = np.random.default_rng(1)
    with MDSWriter(out=folder, columns={"tokens": "ndarray:int32"}) as writer:
        for _ in range(samples):
            writer.write({"tokens": random.integers(0, 50257, TOKENS, dtype=np.int32)})


def rate(samples, seconds):
    count, begin = 0, time.perf_counter()
    for sample in samples:
        count += 1
        if count % 64 == 0 and time.perf_counter() - begin > seconds:
            break
    assert sample["tokens"].size > 0
    return count / (time.perf_counter() - begin)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--make", type=int, default=0, metavar="SAMPLES")
    parser.add_argument("--seconds", type=float, default=3)
    args = parser.parse_args()
    if args.make > 0:
        make(args.folder, args.make)
        return
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=args.folder, shuffle=True, batch_size=16)
    n = len(dataset)
    dataset[0]
    sequential = rate((dataset[i % n] for i in range(1 << 62)), args.seconds)
    random = rate((dataset[i * 7919 % n] for i in range(1 << 62)), args.seconds)

    def epochs():
        while True:
            yield from dataset

    iterated = rate(epochs(), args.seconds)
    print(json.dumps({"samples": n, "sequential_per_s": sequential, "random_per_s": random,
                      "iterated_per_s": iterated}))


main()
