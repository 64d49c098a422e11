#!/usr/bin/env python3
"""Writes tests/golden/sample_orders.json: sample orders as mosaicml-streaming 0.13 computes them.

  .venv/bin/python scripts/make_order_golden.py

Each case holds the settings, the number of samples (padding included), the first ones, and the SHA-256
of all as little-endian int64. `order_of` and `cases` are what tests/peers/order_peer.py compares with.
"""
import hashlib
import json
import logging
import os
import random
import sys
import warnings

import numpy as np

DEFAULTS = {
    "order": "py1e", "shuffle": True, "seed": 9176, "epoch": 0, "sample_in_epoch": 0, "nodes": 1,
    "ranks_per_node": 1, "workers": 1, "batch": 1, "canonical_nodes": 0, "initial_nodes": 0,
    "block_size": 0, "epoch_size": 0, "batching": "random", "partition": "relaxed", "sampling": "balanced",
    "granularity": 1, "weight": None, "weights": []}


def order_of(case):
    """The epoch's samples in the order of training, or None where the package refuses the settings."""
    from streaming.base.batching import generate_work
    from streaming.base.dataset import StreamingDataset
    from streaming.base.stream import Stream
    from streaming.base.world import World
    case = {**DEFAULTS, **case}
    streams = []
    for i in range(len(case["shards"])):
        stream = Stream.__new__(Stream)
        if case["weight"]:
            setattr(stream, case["weight"], case["weights"][i])
        streams.append(stream)
    dataset = StreamingDataset.__new__(StreamingDataset)
    dataset.streams = streams
    dataset.num_streams = len(streams)
    dataset.shuffle = case["shuffle"]
    dataset.shuffle_algo = case["order"]
    dataset.shuffle_seed = case["seed"]
    dataset.batch_size = case["batch"]
    dataset.partition_algo = case["partition"]
    dataset.sampling_method = case["sampling"]
    dataset.sampling_granularity = case["granularity"]
    dataset.epoch_seed_change = case["shuffle"] and case["sampling"] == "balanced"
    dataset.initial_physical_nodes = case["initial_nodes"] or None
    sizes = [np.array(s, np.int64) for s in case["shards"]]
    dataset.samples_per_shard = np.concatenate(sizes)
    dataset.sample_offset_per_shard = dataset.samples_per_shard.cumsum() - dataset.samples_per_shard
    dataset.shards_per_stream = np.array([len(s) for s in sizes], np.int64)
    dataset.shard_offset_per_stream = dataset.shards_per_stream.cumsum() - dataset.shards_per_stream
    dataset.samples_per_stream = np.array([s.sum() for s in sizes], np.int64)
    world = World(case["nodes"], case["ranks_per_node"], case["workers"], 0)
    many = 64 if case["order"] in ("py1s", "py2s") else 1
    dataset.num_canonical_nodes = case["canonical_nodes"] or many * world.num_nodes
    dataset.shuffle_block_size = case["block_size"] or max(4_000_000 // dataset.num_canonical_nodes, 1 << 18)
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Stream.validate_weights(streams)
            dataset.epoch_size = Stream.apply_weights(streams, dataset.samples_per_stream,
                                                      case["epoch_size"] or None, case["seed"])
            work = generate_work(case["batching"], dataset, world, case["epoch"], case["sample_in_epoch"])
        except (ValueError, IndexError, ZeroDivisionError, OverflowError):
            return None
    return work.transpose(3, 2, 0, 1, 4).flatten()


def fixed_cases():
    """A few of every kind, chosen by hand."""
    sizes = [[[64] * 6 + [40]], [[1000] * 20 + [333]], [[7, 1, 30, 2, 11, 100, 5]]]
    out = []
    for order in ["py1e", "py1s", "py1br", "py2s", "naive"]:
        for shards in sizes:
            out.append({"shards": shards, "order": order, "canonical_nodes": 2, "nodes": 2,
                        "ranks_per_node": 2, "workers": 2, "batch": 3, "block_size": 200})
            out.append({"shards": shards, "order": order, "canonical_nodes": 8, "nodes": 1,
                        "ranks_per_node": 4, "batch": 4, "block_size": 64, "epoch": 3, "seed": 17})
        out.append({"shards": [[5000] * 30 + [123]], "order": order, "nodes": 4, "ranks_per_node": 8,
                    "batch": 8, "workers": 3, "canonical_nodes": 8, "epoch": 1, "seed": 2**40 + 5})
    for nodes, initial in [(1, 4), (2, 4), (3, 4), (4, 4), (6, 4), (8, 4)]:
        out.append({"shards": [[100] * 50], "nodes": nodes, "ranks_per_node": 2, "batch": 48 // (2 * nodes),
                    "canonical_nodes": 4, "initial_nodes": initial, "sample_in_epoch": 960, "workers": 2})
    out.append({"shards": [[50] * 9], "shuffle": False, "nodes": 2, "ranks_per_node": 3, "batch": 5})
    out.append({"shards": [[2, 3]], "shuffle": False, "nodes": 2, "ranks_per_node": 3, "batch": 2,
                "canonical_nodes": 16})
    out.append({"shards": [[10, 9]], "order": "naive", "nodes": 6, "canonical_nodes": 3, "ranks_per_node": 2})
    mixed = [[100] * 8, [60] * 5 + [11], [500]]
    for batching in ["random", "stratified", "per_stream", "device_per_stream"]:
        for order in ["py1e", "py1br", "py1s"]:
            out.append({"shards": mixed, "batching": batching, "order": order, "weight": "proportion",
                        "weights": [0.5, 0.2, 0.3], "nodes": 2, "ranks_per_node": 2, "batch": 4,
                        "workers": 2, "canonical_nodes": 4, "epoch": 2, "epoch_size": 1700,
                        "block_size": 300})
    out.append({"shards": mixed, "weight": "repeat", "weights": [2.5, 0.3, 1.0], "batch": 8, "epoch": 1})
    out.append({"shards": mixed, "weight": "choose", "weights": [333, 650, 12], "batch": 8, "epoch": 1,
                "sampling": "fixed"})
    out.append({"shards": mixed, "weight": "choose", "weights": [333, 650, 12], "batch": 8, "epoch": 1,
                "granularity": 17})
    out.append({"shards": mixed, "epoch_size": 700, "batch": 8, "shuffle": False})
    out.append({"shards": [[20000, 30000]], "weight": "repeat", "weights": [0.9], "batch": 64, "epoch": 4})
    out.append({"shards": [[40 + i, 17] for i in range(20)], "weight": "proportion",
                "weights": [1 / (i + 3) for i in range(20)], "batch": 16})
    return out


def random_cases(count, seed):
    rng = random.Random(seed)
    out = []
    while len(out) < count:
        streams = rng.choice([1, 1, 1, 2, 3, 9, 20])
        shards = []
        for _ in range(streams):
            kind = rng.random()
            n = rng.randint(1, 12)
            shards.append([rng.randint(1, 60) for _ in range(n)] if kind < 0.5 else
                          [rng.choice([32, 500])] * n + [rng.randint(1, 30)])
        case = {"shards": shards, "order": rng.choice(["py1e", "py1s", "py1br", "py2s", "naive"]),
                "shuffle": rng.random() < 0.9, "seed": rng.choice([0, 17, 9176, 2**33 + 1]),
                "epoch": rng.randint(0, 5), "nodes": rng.choice([1, 1, 2, 3, 4, 8]),
                "ranks_per_node": rng.choice([1, 2, 3, 8]), "workers": rng.choice([1, 2, 5]),
                "batch": rng.choice([1, 2, 4, 7]), "canonical_nodes": rng.choice([0, 1, 2, 4, 6, 8, 64]),
                "initial_nodes": rng.choice([0, 0, 1, 2, 4]), "block_size": rng.choice([0, 0, 20, 150, 4000]),
                "batching": rng.choice(["random"] * 4 + ["stratified", "per_stream", "device_per_stream"]),
                "partition": rng.choice(["relaxed", "relaxed", "orig"]),
                "sampling": rng.choice(["balanced", "fixed"]), "granularity": rng.choice([1, 1, 3, 50]),
                "sample_in_epoch": rng.choice([0, 0, 24, 96])}
        weight = rng.choice([None, "proportion", "repeat", "choose"])
        if weight:
            case["weight"] = weight
            case["weights"] = [rng.randint(1, 400) if weight == "choose" else rng.choice(
                [1, 2]) if rng.random() < 0.2 else round(rng.random() * 3 + 0.01, 4) for _ in range(streams)]
            if weight == "choose":
                case["weights"] = [int(w) or 1 for w in case["weights"]]
        if weight in (None, "proportion") and rng.random() < 0.4:
            case["epoch_size"] = rng.randint(1, 900)
        out.append(case)
    return out


def digest(samples):
    return hashlib.sha256(samples.astype("<i8").tobytes()).hexdigest()


def main():
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "golden",
                        "sample_orders.json")
    lines = []
    for case in fixed_cases() + random_cases(60, 1):
        samples = order_of(case)
        if samples is None:
            continue
        lines.append(json.dumps({**case, "count": len(samples), "head": samples[:12].tolist(),
                                 "sha256": digest(samples)}))
    with open(path, "w") as out:
        out.write("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"{len(lines)} cases, {os.path.getsize(path)} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
