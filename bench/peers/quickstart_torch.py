#!/usr/bin/env python3
"""The quickstart's model in PyTorch: what `tessera train recipes/quickstart.yaml` is compared with.

Reads the dataset that Tessera built (same files, same split, same tokenizer), trains for the same
seconds on the same cores, and scores the same held-out documents in bits per byte. Compiled, Muon for
matrices and AdamW for the rest, warm-up-stable-decay; compilation is not counted. bf16 is
torch.autocast, and Muon's iteration in bf16.

  .venv/bin/python bench/peers/quickstart_torch.py --data runs/quickstart/dataset --seconds 180
  .venv/bin/python bench/peers/quickstart_torch.py --steps 20    only tokens a second, random tokens
"""
import argparse
import contextlib
import json
import math
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F

from turns import take_turns, time_steps


def read_mds(folder):
    """Documents of an MDS dataset with columns `bytes` (int) and `tokens` (ndarray:uint16)."""
    index = json.loads((folder / "index.json").read_text())
    documents, raw_bytes = [], 0
    for shard in index["shards"]:
        data = (folder / shard["raw_data"]["basename"]).read_bytes()
        count = int.from_bytes(data[:4], "little")
        offsets = np.frombuffer(data, "<u4", count + 1, 4)
        names, sizes = shard["column_names"], shard["column_sizes"]
        for i in range(count):
            at = int(offsets[i])
            lengths = []
            for size in sizes:
                if size:
                    lengths.append(size)
                else:
                    lengths.append(int.from_bytes(data[at:at + 4], "little"))
                    at += 4
            for name, length in zip(names, lengths):
                value = data[at:at + length]
                at += length
                if name == "bytes":
                    raw_bytes += int.from_bytes(value, "little")
                elif name == "tokens":
                    width = 1 << (value[0] & 3)
                    documents.append(np.frombuffer(value, "<u2", offset=1 + width).astype(np.int64))
    return documents, raw_bytes


def norm(x):
    return F.rms_norm(x, (x.shape[-1],))


class Block(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = torch.nn.Linear(width, 3 * width, bias=False)
        self.out = torch.nn.Linear(width, width, bias=False)
        self.up = torch.nn.Linear(width, 4 * width, bias=False)
        self.down = torch.nn.Linear(4 * width, width, bias=False)
        torch.nn.init.zeros_(self.out.weight)
        torch.nn.init.zeros_(self.down.weight)

    def forward(self, x, cos, sin):
        b, t, c = x.shape
        q, k, v = self.qkv(norm(x)).view(b, t, 3, self.heads, c // self.heads).unbind(2)
        q, k = norm(q), norm(k)

        def rotate(u):
            a, d = u.chunk(2, -1)
            return torch.cat([a * cos - d * sin, d * cos + a * sin], -1)

        y = F.scaled_dot_product_attention(rotate(q).transpose(1, 2), rotate(k).transpose(1, 2),
                                           v.transpose(1, 2), is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.down(torch.relu(self.up(norm(x))) ** 2)


class Model(torch.nn.Module):
    def __init__(self, vocab, width, layers, heads, length):
        super().__init__()
        self.embed = torch.nn.Embedding(vocab, width)
        self.blocks = torch.nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = torch.nn.Linear(width, vocab, bias=False)
        torch.nn.init.zeros_(self.head.weight)
        half = width // heads // 2
        theta = 10000.0 ** (-torch.arange(half) / half)
        angle = torch.arange(length)[:, None] * theta[None]
        self.register_buffer("cos", angle.cos()[None, :, None])
        self.register_buffer("sin", angle.sin()[None, :, None])

    def forward(self, tokens, targets, reduction="mean"):
        x = self.embed(tokens)
        length = tokens.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:, :length], self.sin[:, :length])
        logits = self.head(norm(x)).float()
        logits = 15 * torch.tanh(logits / 15)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100,
                               reduction=reduction)


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.95, dtype=torch.float32):
        super().__init__(params, dict(lr=lr, momentum=momentum))
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                u = p.grad.lerp(buffer, group["momentum"])
                x = (u / (u.norm() + 1e-7)).to(self.dtype)
                flip = x.shape[0] > x.shape[1]
                x = x.T if flip else x
                for _ in range(5):
                    a = x @ x.T
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                x = x.T if flip else x
                p.sub_(x, alpha=group["lr"] * math.sqrt(max(1, p.shape[0] / p.shape[1])))


def autocast(args):
    """What forward passes run in."""
    if args.dtype == "bf16":
        return torch.autocast("cpu", torch.bfloat16)
    return contextlib.nullcontext()


def muon_of(matrices, lr, args):
    return Muon(matrices, lr=lr, dtype=torch.bfloat16 if args.dtype == "bf16" else torch.float32)


def speed(args):
    """Median tokens a second of steps over random tokens, after the first two."""
    model = Model(args.vocab, args.width, args.layers, args.heads, args.length)
    matrices = [] if args.adamw else [p for block in model.blocks for p in block.parameters()]
    taken = {id(p) for p in matrices}
    optimizers = [torch.optim.AdamW([p for p in model.parameters() if id(p) not in taken],
                                    lr=1e-4, betas=(0.9, 0.95), weight_decay=0)]
    if matrices:
        optimizers.append(muon_of(matrices, 1e-4, args))
    run = model if args.eager else torch.compile(model)
    shape = (args.batch, args.length)
    tokens, targets = (torch.randint(args.vocab, shape) for _ in range(2))

    def step():
        with autocast(args):
            loss = run(tokens, targets)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    for _ in range(2):
        step()
    seconds = take_turns(step) if args.turns else time_steps(step, args.steps)
    return {"tokens_per_s": args.batch * args.length / sorted(seconds)[len(seconds) // 2],
            "parameters": sum(p.numel() for p in model.parameters()),
            "threads": torch.get_num_threads(), "torch": torch.__version__}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="runs/quickstart/dataset")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--steps", type=int, default=0,
                        help="time this many steps of random tokens instead of a training run")
    parser.add_argument("--turns", action="store_true",
                        help="the same on request, see turns.py")
    parser.add_argument("--vocab", type=int, default=4096, help="with --steps and --turns")
    parser.add_argument("--adamw", action="store_true", help="with them: AdamW for all weights")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.steps > 0 or args.turns:
        print(json.dumps(speed(args)))
        return
    data = pathlib.Path(args.data)
    tokenizer = json.loads((data / "dataset.json").read_text())["tokenizer"]
    eos, vocab = tokenizer["eos_id"], tokenizer["vocab_size"]
    documents, _ = read_mds(data / "train")
    held_out, held_out_bytes = read_mds(data / "validation")
    order = np.random.default_rng(0).permutation(len(documents))
    stream = np.concatenate([np.append(documents[i], eos) for i in order])
    samples = (len(stream) - 1) // args.length
    starts = np.random.default_rng(1).permutation(samples) * args.length

    model = Model(vocab, args.width, args.layers, args.heads, args.length)
    matrices = [p for block in model.blocks for p in block.parameters()]
    adam = torch.optim.AdamW(
        [{"params": [model.embed.weight], "lr": 10 * args.lr}, {"params": [model.head.weight]}],
        lr=args.lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0)
    muon = muon_of(matrices, args.muon_lr, args)
    base = [[g["lr"] for g in o.param_groups] for o in (adam, muon)]
    run = model if args.eager else torch.compile(model)

    def batch(i):
        rows = [starts[(i * args.batch + j) % samples] for j in range(args.batch)]
        block = np.stack([stream[s:s + args.length + 1] for s in rows])
        block = torch.from_numpy(block)
        return block[:, :-1].contiguous(), block[:, 1:].contiguous()

    with autocast(args):
        loss = run(*batch(0))
    loss.backward()  # compiles; not counted
    model.zero_grad(set_to_none=True)
    start, step = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < args.seconds:
        progress = elapsed / args.seconds
        factor = min(1.0, progress / 0.02 + 0.05, (1 - progress) / 0.4)
        for optimizer, rates in zip((adam, muon), base):
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * max(factor, 0.0)
        with autocast(args):
            loss = run(*batch(step))
        loss.backward()
        adam.step()
        muon.step()
        model.zero_grad(set_to_none=True)
        step += 1
        if step % 50 == 0:
            print(f"step {step}  {elapsed:.0f}s  loss {loss.item():.3f}", flush=True)
    seconds = time.perf_counter() - start

    nats, tokens = 0.0, 0
    with torch.no_grad():
        for document in held_out:
            text = np.concatenate([[eos], document])
            for at in range(0, len(text) - 1, args.length):
                piece = torch.from_numpy(text[at:at + args.length + 1])[None]
                nats += model(piece[:, :-1], piece[:, 1:], "sum").item()
                tokens += piece.shape[1] - 1
    print(json.dumps({
        "bits_per_byte": nats / math.log(2) / held_out_bytes,
        "held_out_bytes": held_out_bytes, "held_out_tokens": tokens,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": step * args.batch * args.length, "train_seconds": seconds,
        "tokens_per_s": step * args.batch * args.length / seconds, "steps": step}, indent=2))


if __name__ == "__main__":
    main()
