#!/usr/bin/env python3
"""tiktoken and Hugging Face's tokenizers beside `tessera bench tokenize`: the same files.

  .venv/bin/python bench/peers/tokenizers_peer.py encode TOKENIZER.json FILES...
  .venv/bin/python bench/peers/tokenizers_peer.py train VOCAB_SIZE FILES...

encode: one thread, every library with empty caches, the vocabulary of TOKENIZER.json (byte-level BPE
with GPT-2's cut), MB/s each, and whether both give the same ids. train: seconds of the trainer of
tokenizers on every core. Prints JSON.
"""
import json
import os
import pathlib
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false" if sys.argv[1:2] == ["encode"] else "true"
import tiktoken  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # noqa: E402

GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def bytes_of_characters():
    """The printable characters with which byte-level vocabularies write bytes, reversed."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in kept}
    for i, b in enumerate(b for b in range(256) if b not in kept):
        table[chr(256 + i)] = b
    return table


def read(paths):
    texts = []
    for path in paths:
        path = pathlib.Path(path)
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        texts += [f.read_bytes().decode("utf-8", errors="replace") for f in files]
    return texts


def encode(tokenizer_json, texts):
    spec = json.loads(pathlib.Path(tokenizer_json).read_text())
    table = bytes_of_characters()
    special = {t["content"]: t["id"] for t in spec["added_tokens"]}
    ranks = {bytes(table[c] for c in word): i for word, i in spec["model"]["vocab"].items()
             if word not in special}
    size = sum(len(t.encode()) for t in texts)

    theirs = tiktoken.Encoding("peer", pat_str=GPT2, mergeable_ranks=ranks, special_tokens=special)
    begin = time.perf_counter()
    ids = [theirs.encode_ordinary(t) for t in texts]
    tiktoken_s = time.perf_counter() - begin

    hugging = Tokenizer.from_file(tokenizer_json)
    begin = time.perf_counter()
    other = [hugging.encode(t, add_special_tokens=False).ids for t in texts]
    hugging_s = time.perf_counter() - begin
    return {"bytes": size, "tokens": sum(map(len, ids)), "same_ids": ids == other,
            "tiktoken_mb_per_s": size / tiktoken_s / 1e6,
            "tokenizers_mb_per_s": size / hugging_s / 1e6}


def train(vocab_size, texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<|endoftext|>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    begin = time.perf_counter()
    tokenizer.train_from_iterator(texts, trainer)
    return {"train_seconds": time.perf_counter() - begin, "vocab_size": tokenizer.get_vocab_size()}


def main():
    if len(sys.argv) < 4 or sys.argv[1] not in ("encode", "train"):
        sys.exit(__doc__)
    texts = read(sys.argv[3:])
    result = encode(sys.argv[2], texts) if sys.argv[1] == "encode" else train(int(sys.argv[2]), texts)
    print(json.dumps(result))


main()
