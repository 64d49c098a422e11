"""Samples a second of mosaicml-streaming from an MDS dataset in a local folder, one process.

  .venv/bin/python bench/peers/streaming_read.py FOLDER [SECONDS]

Prints JSON: sequential and random access by index (no DataLoader, no workers: the reader alone), and the
whole path through an iterator.
"""
import json
import sys
import time
import warnings

warnings.simplefilter("ignore")
from streaming import StreamingDataset  # noqa: E402
from streaming.base.util import clean_stale_shared_memory  # noqa: E402


def rate(samples, seconds):
    count, begin = 0, time.perf_counter()
    for sample in samples:
        count += 1
        if count % 64 == 0 and time.perf_counter() - begin > seconds:
            break
    return count / (time.perf_counter() - begin)


def main():
    folder = sys.argv[1]
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 3.0
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=folder, shuffle=True, batch_size=16)
    n = len(dataset)
    sequential = rate((dataset[i % n] for i in range(1 << 62)), seconds)
    random = rate((dataset[i * 7919 % n] for i in range(1 << 62)), seconds)
    iterated = rate(iter(dataset), seconds)
    print(json.dumps({"samples": n, "sequential_per_s": sequential, "random_per_s": random,
                      "iterated_per_s": iterated}))


main()
