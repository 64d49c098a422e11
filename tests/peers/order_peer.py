"""Compares `tessera data order` with mosaicml-streaming: its own functions over many settings, and whole
StreamingDatasets read through a DataLoader."""
import importlib.util
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

program, root = sys.argv[1], sys.argv[2]
spec = importlib.util.spec_from_file_location("orders", os.path.join(root, "scripts", "make_order_golden.py"))
orders = importlib.util.module_from_spec(spec)
spec.loader.exec_module(orders)


def arguments(case):
    case = {**orders.DEFAULTS, **case}
    args = []
    for shards in case["shards"]:
        args += ["--shards", ",".join(map(str, shards))]
    for flag, key in [("order", "order"), ("seed", "seed"), ("epoch", "epoch"), ("nodes", "nodes"),
                      ("sample-in-epoch", "sample_in_epoch"), ("ranks-per-node", "ranks_per_node"),
                      ("workers", "workers"), ("batch", "batch"), ("canonical-nodes", "canonical_nodes"),
                      ("initial-nodes", "initial_nodes"), ("block-size", "block_size"),
                      ("epoch-size", "epoch_size"), ("batching-method", "batching"),
                      ("partition-algo", "partition"), ("sampling-method", "sampling"),
                      ("sampling-granularity", "granularity")]:
        args += [f"--{flag}", str(case[key])]
    if not case["shuffle"]:
        args.append("--no-shuffle")
    if case["weight"]:
        args += [f"--{case['weight']}", ",".join(map(repr, case["weights"]))]
    return args


def tessera(args):
    done = subprocess.run([program, "data", "order", *args, "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        assert done.returncode == 2, done.stderr
        return None
    return json.loads(done.stdout)


def check_functions():
    equal, refused = 0, 0
    for case in orders.fixed_cases() + orders.random_cases(400, 7):
        want = orders.order_of(case)
        got = tessera(arguments(case))
        if want is None or got is None:
            assert want is None and got is None, (case, want, got)
            refused += 1
            continue
        got = np.array(got["samples"], np.int64)
        assert got.shape == want.shape and (got == want).all(), (case, want[:50], got[:50])
        equal += 1
    assert equal > 250, (equal, refused)
    print(f"{equal} orders are equal, {refused} settings are refused by both")


def read_rank(folder, rank, world, local_world, workers, batch, epochs, options, out):
    """One rank's samples, read in a process of its own by the package's DataLoader."""
    code = f"""
import json, os, sys, warnings
warnings.simplefilter("ignore")
os.environ.update(RANK="{rank}", WORLD_SIZE="{world}", LOCAL_WORLD_SIZE="{local_world}",
                  LOCAL_RANK="{rank % local_world}", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
from streaming import StreamingDataset
from streaming.base.util import clean_stale_shared_memory
clean_stale_shared_memory()
from torch.utils.data import DataLoader
dataset = StreamingDataset(local={folder!r}, batch_size={batch}, **{options!r})
loader = DataLoader(dataset, batch_size={batch}, num_workers={workers}, drop_last=False)
epochs = [[int(n) for rows in loader for n in rows["n"]] for _ in range({epochs})]
json.dump(epochs, open({out!r}, "w"))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def check_datasets(work):
    from streaming import MDSWriter
    folder = os.path.join(work, "numbers")
    with MDSWriter(out=folder, columns={"n": "int"}, size_limit=800) as writer:
        for n in range(1000):
            writer.write({"n": n})
    # Several ranks need torch.distributed; one rank of one node is the package end to end.
    for options in [{"shuffle": True, "shuffle_seed": 3, "shuffle_block_size": 300},
                    {"shuffle": True, "shuffle_algo": "py1s", "num_canonical_nodes": 4},
                    {"shuffle": False, "epoch_size": 500}]:
        out = os.path.join(work, "rank.json")
        read_rank(folder, 0, 1, 1, 2, 8, 2, options, out)
        for epoch, want in enumerate(json.load(open(out))):
            args = [folder, "--batch", "8", "--workers", "2", "--epoch", str(epoch), "--rank", "0"]
            for name, flag in [("shuffle_seed", "--seed"), ("shuffle_block_size", "--block-size"),
                               ("shuffle_algo", "--order"), ("num_canonical_nodes", "--canonical-nodes"),
                               ("epoch_size", "--epoch-size")]:
                if name in options:
                    args += [flag, str(options[name])]
            if not options["shuffle"]:
                args.append("--no-shuffle")
            got = [n for n in tessera(args)["samples"] if n >= 0]
            assert got == want, (options, epoch, got[:20], want[:20])
    print("3 datasets read through a DataLoader give the same samples")


check_functions()
with tempfile.TemporaryDirectory() as folder:
    check_datasets(folder)
print("ok")
