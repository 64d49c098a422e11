"""Datasets both ways between Tessera and mosaicml-streaming.

usage: mds_peer.py PATH_OF_TESSERA
Exit code 77 means skipped: a package is missing.
"""
import json
import os
import subprocess
import sys
import tempfile
from decimal import Decimal

try:
    import numpy as np
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
except ImportError as error:
    print(f"SKIP: {error}")
    sys.exit(77)

TESSERA = sys.argv[1]


def run(*args, expect=0):
    result = subprocess.run([TESSERA, *args], capture_output=True, text=True)
    assert result.returncode == expect, (args, result.returncode, result.stdout, result.stderr)
    return result.stdout


def tokens_dataset(folder, algorithms):
    """Reads a split of ours, verifying its hashes, and writes the same samples with MDSWriter."""
    index = json.load(open(os.path.join(folder, "index.json")))
    shard = index["shards"][0]
    rewritten = folder + "-rewritten"
    with MDSWriter(out=rewritten, columns=dict(zip(shard["column_names"], shard["column_encodings"])),
                   hashes=shard["hashes"], size_limit=shard["size_limit"]) as writer:
        for algorithm in algorithms:
            clean_stale_shared_memory()
            dataset = StreamingDataset(local=folder, shuffle=False, batch_size=1,
                                       validate_hash=algorithm)
            assert len(dataset) == sum(s["samples"] for s in index["shards"])
            for i in range(len(dataset)):
                sample = dataset[i]
                assert sample["tokens"].ndim == 1 and sample["tokens"].dtype == np.uint16
                assert isinstance(sample["source"], str) and isinstance(sample["document"], str)
                if algorithm == algorithms[0]:
                    writer.write(sample)
            del dataset
    names = sorted(os.listdir(rewritten))
    assert "index.json" in names and len(names) >= 2, names
    for name in names:
        ours = open(os.path.join(folder, name), "rb").read()
        theirs = open(os.path.join(rewritten, name), "rb").read()
        assert ours == theirs, f"{name} is not byte-equal"
    return len(names) - 1


def check_ours(work):
    corpus = os.path.join(work, "corpus")
    os.makedirs(corpus)
    texts = {}
    for i in range(300):
        name = f"d{i:03d}.txt"
        texts[name] = f"Document {i}. " + " ".join(f"word{(i * k) % 97} é" for k in range(i % 60 + 1))
        open(os.path.join(corpus, name), "w").write(texts[name])
    tokenizer = os.path.join(work, "tokenizer.json")
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trained.train_from_iterator(texts.values(), trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    trained.save(tokenizer)
    dataset = os.path.join(work, "dataset")
    built = json.loads(run("data", "build", "--source", f"corpus={corpus}", "--license", "corpus=CC0-1.0",
                           "--tokenizer", tokenizer, "-o", dataset, "--validation-fraction", "0.1",
                           "--shard-bytes", "16384", "--json"))
    assert built["train"]["documents"] + built["validation"]["documents"] == 300, built
    shards = tokens_dataset(os.path.join(dataset, "train"), ["xxh64", "sha256"])
    assert shards > 1, shards
    tokens_dataset(os.path.join(dataset, "validation"), ["sha256"])
    clean_stale_shared_memory()
    reader = StreamingDataset(local=os.path.join(dataset, "train"), shuffle=False, batch_size=1)
    for i in range(0, len(reader), 17):
        sample = reader[i]
        shown = json.loads(run("data", "inspect", os.path.join(dataset, "train"), "--sample", str(i),
                               "--json"))
        assert shown["text"] == texts[sample["document"]], i
        assert sample["bytes"] == len(texts[sample["document"]].encode())
    print(f"ours: {len(reader)} samples in {shards} shards, byte-equal to MDSWriter's")


def check_theirs(work):
    columns = {"text": "str", "n": "int", "u16": "ndarray:uint16", "u32": "ndarray:uint32",
               "tokens": "ndarray:int32", "fixed": "ndarray:int64:2,3", "any": "ndarray", "raw": "bytes",
               "meta": "json", "f": "float32", "h": "float16", "dec": "str_int"}
    rng = np.random.default_rng(5)
    samples = []
    for i in range(200):
        length = int(rng.integers(1, 700))
        samples.append({
            "text": f"text {i} é 中\n", "n": i - 100,
            "u16": rng.integers(0, 65536, length).astype(np.uint16),
            "u32": rng.integers(0, 2**32, 5).astype(np.uint32),
            "tokens": rng.integers(0, 50000, length).astype(np.int32),
            "fixed": rng.integers(-9, 9, (2, 3)).astype(np.int64),
            "any": rng.integers(0, 200, (3, 4)).astype(np.uint8),
            "raw": bytes(rng.integers(0, 256, 20).astype(np.uint8)),
            "meta": {"k": [1, None, "é"]}, "f": np.float32(i) / 3, "h": np.float16(i) / 3,
            "dec": 10**30 + i})
    for compression in [None, "zstd", "zstd:7", "gz", "br", "bz2", "snappy"]:
        folder = os.path.join(work, f"theirs-{compression}".replace(":", "-"))
        with MDSWriter(out=folder, columns=columns, compression=compression, size_limit=1 << 16,
                       hashes=["blake2b", "md5", "sha1", "sha3_256", "xxh128", "xxh3_64"]) as writer:
            for sample in samples:
                writer.write(sample)
        report = json.loads(run("data", "verify", folder, "--json"))
        assert report["ok"], report
        split = report["splits"][0]
        assert split["samples"] == 200 and split["shards"] > 2, split
        assert split["tokens"] == sum(len(s["tokens"]) for s in samples)
        assert split["hashes_checked"] == 6 * split["shards"] * (2 if compression else 1), split
        assert split["hashes_unknown"] == 0
        for i in range(0, 200, 23):
            got = json.loads(run("data", "inspect", folder, "--sample", str(i), "--json"))["columns"]
            want = samples[i]
            assert got["text"] == want["text"] and got["n"] == want["n"] and got["meta"] == want["meta"]
            for name in ["u16", "u32", "tokens", "fixed", "any"]:
                flat = want[name].reshape(-1).tolist()
                assert got[name]["values"] == flat[:64] and got[name]["shape"] == list(want[name].shape)
                assert got[name]["dtype"] == str(want[name].dtype)
            assert got["raw"] == {"bytes": 20, "hex": want["raw"].hex()}
            assert np.float32(got["f"]) == want["f"] and np.float16(got["h"]) == want["h"]
            assert int(got["dec"]) == want["dec"]
        print(f"theirs, compression {compression}: 200 samples in {split['shards']} shards read")
    # One flipped byte is found.
    path = os.path.join(work, "theirs-None", "shard.00001.mds")
    data = bytearray(open(path, "rb").read())
    data[len(data) // 2] ^= 1
    open(path, "wb").write(data)
    out = json.loads(run("data", "verify", os.path.join(work, "theirs-None"), "--json", expect=4))
    assert not out["ok"] and any("shard.00001.mds" in p for p in out["splits"][0]["problems"]), out


def check_encodings(work):
    """Every encoding of text, tokens and numbers, and every hash that the original knows."""
    scalars = {name: np.dtype(name) for name in ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64",
                                                 "int64", "float16", "float32", "float64"]}
    arrays = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"]
    columns = {"s_" + name: name for name in scalars} | {"a_" + name: "ndarray:" + name for name in arrays}
    columns |= {"str": "str", "bytes": "bytes", "int": "int", "json": "json", "str_int": "str_int",
                "str_float": "str_float", "str_decimal": "str_decimal", "any": "ndarray", "shaped": "ndarray:uint8:2,2"}
    hashes = ["blake2b", "blake2s", "md5", "sha1", "sha224", "sha256", "sha384", "sha512", "sha3_224", "sha3_256",
              "sha3_384", "sha3_512", "xxh128", "xxh32", "xxh3_128", "xxh3_64", "xxh64"]
    hashes = sorted(hashes)  # As the writer wants them.
    folder = os.path.join(work, "encodings")
    samples = []
    with MDSWriter(out=folder, columns=columns, hashes=hashes, size_limit=4096) as writer:
        for i in range(30):
            sample = {"s_" + name: dtype.type(i * 3 % 100) for name, dtype in scalars.items()}
            sample |= {"a_" + name: (np.arange(i + 1) % 100).astype(name) for name in arrays}
            sample |= {"str": "é" * i, "bytes": b"\x00\xff" * i, "int": -i, "json": {"i": [i, None, "x"]},
                       "str_int": -10**25 - i, "str_float": i / 7, "str_decimal": Decimal(i) / 8,
                       "any": np.full((2, i + 1), i, np.int16), "shaped": np.full((2, 2), i, np.uint8)}
            writer.write(sample)
            samples.append(sample)
    report = json.loads(run("data", "verify", folder, "--json"))
    split = report["splits"][0]
    assert report["ok"] and split["hashes_unknown"] == 0, report
    assert split["hashes_checked"] == len(hashes) * split["shards"], split
    for i in range(0, 30, 7):
        got = json.loads(run("data", "inspect", folder, "--sample", str(i), "--json"))["columns"]
        want = samples[i]
        for name, dtype in scalars.items():
            assert dtype.type(got["s_" + name]) == want["s_" + name], (name, got["s_" + name])
        for name in arrays:
            assert got["a_" + name]["values"] == want["a_" + name].tolist() and got["a_" + name]["dtype"] == name
        assert got["str"] == want["str"] and got["int"] == want["int"] and got["json"] == want["json"]
        assert got["bytes"]["hex"] == want["bytes"].hex()
        assert int(got["str_int"]) == want["str_int"] and float(got["str_float"]) == want["str_float"]
        assert Decimal(got["str_decimal"]) == want["str_decimal"]
        for name in ["any", "shaped"]:
            assert got[name]["shape"] == list(want[name].shape) and got[name]["values"] == want[name].reshape(-1).tolist()
    print(f"theirs: {len(columns)} encodings and {len(hashes)} hashes read")


def check_training(work):
    """Streams of their datasets train to the same bits, whatever the compression and the hashes."""
    columns = {"tokens": "ndarray:int32"}
    rng = np.random.default_rng(6)
    samples = [{"tokens": rng.integers(0, 300, 33).astype(np.int32)} for _ in range(120)]
    run_file = os.path.join(work, "run.yaml")
    with open(run_file, "w") as file:
        file.write("max_seq_len: 32\nmax_duration: 8ba\nglobal_train_batch_size: 6\nprecision: fp32\nthreads: 1\n"
                   "model: {name: mpt_causal_lm, d_model: 16, n_heads: 2, n_layers: 1, vocab_size: 300}\n"
                   "optimizer: {name: adamw, lr: 1.0e-3}\nreport: false\n"
                   "data: {rows: samples, shuffle_algo: py1e, num_canonical_nodes: 2}\n")
    weights = None
    for compression, hashes in [(None, []), ("zstd:3", ["xxh64"]), ("gz", ["sha1"]), ("br:4", ["md5", "xxh3_64"]),
                                ("bz2", ["sha256"]), ("snappy", ["blake2s", "xxh128"])]:
        name = str(compression).replace(":", "-")
        folder = os.path.join(work, "train-" + name)
        with MDSWriter(out=os.path.join(folder, "train"), columns=columns, compression=compression, hashes=hashes,
                       size_limit=1500) as writer:
            for sample in samples:
                writer.write(sample)
        stream = "{remote: \"%s\", local: \"%s-cache\", split: train, validate_hash: %s}" % (
            folder, folder, hashes[-1] if hashes else "\"\"")
        run("train", run_file, "save_folder=" + folder + "-run", "data.streams={theirs: %s}" % stream)
        checkpoint = os.path.join(folder + "-run", "ckpt-00000008ba", "weights.safetensors")
        read = open(checkpoint, "rb").read()
        assert weights is None or read == weights, f"{compression}: other weights"
        weights = read
        left = os.listdir(os.path.join(folder + "-cache", "train"))
        assert any(n.endswith(".mds") for n in left) and not any(n.startswith(".part-") for n in left), left
    print("theirs: the same weights from every compression")


with tempfile.TemporaryDirectory() as work:
    check_theirs(work)
    check_encodings(work)
    check_training(work)
    check_ours(work)
print("ok")
