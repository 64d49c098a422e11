#!/usr/bin/env python3
"""The other half of tokenizer_peer_test: Hugging Face's tokenizers on the same documents.

Usage: tokenizer_peer.py FOLDER

FOLDER holds documents.bin (a sequence of [u32 length][bytes]), train.bin (the same form) and
ours_*.json, tokenizers that Tessera saved. For each of them, and for tokenizers that this script
trains and saves itself as theirs_*.json, it writes NAME.ids: for each document [u32 count][u32 id]...
All documents go through the names in FULL, every fifth through the others.
"""
import glob
import json
import os
import struct
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
FULL = ("ours_gpt2", "theirs_llama3_style")
QWEN2 = LLAMA3.replace("{1,3}", "")


def read_documents(path):
    data = open(path, "rb").read()
    texts, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        texts.append(data[at + 4:at + 4 + size].decode("utf-8"))
        at += 4 + size
    return texts


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    byte_level(False)])


PRE_TOKENIZERS = {
    "gpt2": byte_level(True),
    "llama3": split(LLAMA3),
    "qwen2": split(QWEN2),
    "gpt2_digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                            byte_level(True)]),
}


def train(kind, texts, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[kind]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<|endoftext|>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def variants(tokenizer):
    """Files in the style of published models, made by the library's own interface."""
    base = json.loads(tokenizer.to_str())
    llama = json.loads(json.dumps(base))
    llama["model"]["ignore_merges"] = True
    # Words of the documents that no merge reaches, which ignore_merges makes usable.
    vocab = llama["model"]["vocab"]
    words = [w for w in ("theWordthe", "WordWordthe", "thetheWord", "ZyxwvutsrqpoWord")
             if w not in vocab]
    assert words
    for word in words:
        vocab[word] = len(vocab)
    llama["pre_tokenizer"] = json.loads(PRE_TOKENIZERS["llama3"].__getstate__())
    llama = Tokenizer.from_str(json.dumps(llama))
    llama.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    llama.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B:1",
        special_tokens=[("<|begin_of_text|>", llama.token_to_id("<|begin_of_text|>"))])
    yield "llama3_style", llama

    neox = Tokenizer.from_str(tokenizer.to_str())
    neox.normalizer = normalizers.NFC()
    neox.add_special_tokens(["<|padding|>"])
    neox.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    yield "neox_style", neox

    strips = Tokenizer.from_str(tokenizer.to_str())
    strips.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False),
                               AddedToken("<sep>", rstrip=True, normalized=False),
                               AddedToken("<both>", lstrip=True, rstrip=True)])
    yield "strips_style", strips


def write_ids(folder, name, tokenizer, texts):
    if name not in FULL:
        texts = texts[::5]
    with open(os.path.join(folder, name + ".ids"), "wb") as out:
        for at in range(0, len(texts), 256):
            batch = texts[at:at + 256]
            for text, encoding in zip(batch, tokenizer.encode_batch(batch,
                                                                    add_special_tokens=False)):
                ids = encoding.ids
                out.write(struct.pack(f"<I{len(ids)}I", len(ids), *ids))


def main():
    folder = sys.argv[1]
    texts = read_documents(os.path.join(folder, "documents.bin"))
    for path in sorted(glob.glob(os.path.join(folder, "ours_*.json"))):
        tokenizer = Tokenizer.from_file(path)
        write_ids(folder, os.path.basename(path)[:-5], tokenizer, texts)
        # Their decoder gives the text back from our file.
        for text in texts[::len(texts) // 50]:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            if tokenizer.decode(ids, skip_special_tokens=False) != text:
                sys.exit(f"{path}: decode differs on {text!r}")
    sample = read_documents(os.path.join(folder, "train.bin"))
    for kind in PRE_TOKENIZERS:
        trained = train(kind, sample, 3000)
        trained.save(os.path.join(folder, f"theirs_{kind}.json"))
        if kind == "gpt2":
            gpt2 = trained
            write_ids(folder, "theirs_gpt2", trained, texts)
    for name, tokenizer in variants(gpt2):
        tokenizer.save(os.path.join(folder, f"theirs_{name}.json"))
        write_ids(folder, f"theirs_{name}", tokenizer, texts)


if __name__ == "__main__":
    main()
