#!/usr/bin/env python3
"""Makes tests/golden/*.safetensors: reference numbers of tiny models, computed by PyTorch.

Written from the formulas (docs/architecture.md names them), not from any model library. Weights come
from a small integer hash that the C++ test repeats, so the files hold results only: logits, loss,
every gradient, the losses of ten AdamW steps, and a Muon update.

  .venv/bin/python scripts/make_golden.py            # writes into tests/golden/
"""
import math
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file

torch.manual_seed(0)
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

MASK = (1 << 64) - 1
BATCH, LENGTH, VOCAB, WIDTH, LAYERS, HEADS = 2, 24, 96, 32, 2, 4
EPS = 1e-5


def fnv1a(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & MASK
    return value


def hashed_uniform(name, count):
    """count doubles in [-1, 1): splitmix64 of fnv1a(name) + index, the upper 24 bits."""
    with np.errstate(over="ignore"):
        z = np.uint64(fnv1a(name)) + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / float(1 << 23) - 1.0


class Config:
    def __init__(self, name, **options):
        self.name = name
        self.positions = options.get("positions", "learned")
        self.norm = options.get("norm", "layernorm")
        self.norm_gain = options.get("norm_gain", True)
        self.biases = options.get("biases", True)
        self.activation = options.get("activation", "gelu_tanh")
        self.gated = options.get("gated", False)
        self.qk_norm = options.get("qk_norm", "none")
        self.qk_gain = options.get("qk_gain", True)
        self.clip = options.get("clip", 0.0)
        self.kv_heads = options.get("kv_heads", HEADS)
        self.ffn = options.get("ffn", 4 * WIDTH)
        self.tied = options.get("tied", True)
        self.softcap = options.get("softcap", 0.0)
        self.bigram = options.get("bigram", 0)
        self.window = options.get("window", 0)
        self.head = WIDTH // HEADS


CONFIGS = [
    Config("gpt2"),
    Config("mpt", positions="alibi", biases=False, activation="gelu", qk_norm="layernorm", clip=0.4),
    Config("llama", positions="rope", norm="rmsnorm", biases=False, activation="silu", gated=True,
           kv_heads=2, ffn=88, tied=False),
    Config("modern", positions="rope", norm="rmsnorm", norm_gain=False, biases=False,
           activation="relu_squared", qk_norm="rms_per_head", qk_gain=False, tied=False,
           softcap=15.0, bigram=64, window=9),
]


def parameter_shapes(c):
    shapes = {"transformer.wte.weight": (VOCAB, WIDTH)}
    if c.bigram:
        shapes["transformer.bigram.weight"] = (c.bigram, WIDTH)
    if c.positions == "learned":
        shapes["transformer.wpe.weight"] = (64, WIDTH)
    kv = c.kv_heads * c.head

    def norm(name):
        if c.norm_gain:
            shapes[name + ".weight"] = (WIDTH,)
        if c.biases and c.norm == "layernorm":
            shapes[name + ".bias"] = (WIDTH,)

    def linear(name, out, inp):
        shapes[name + ".weight"] = (out, inp)
        if c.biases:
            shapes[name + ".bias"] = (out,)

    for layer in range(LAYERS):
        block = f"transformer.blocks.{layer}."
        norm(block + "norm_1")
        linear(block + "attn.Wqkv", WIDTH + 2 * kv, WIDTH)
        if c.qk_norm != "none" and c.qk_gain:
            for part, width in (("q_ln", WIDTH), ("k_ln", kv)):
                shapes[block + f"attn.{part}.weight"] = (width,)
                if c.biases:
                    shapes[block + f"attn.{part}.bias"] = (width,)
        linear(block + "attn.out_proj", WIDTH, WIDTH)
        norm(block + "norm_2")
        linear(block + ("ffn.gate_up_proj" if c.gated else "ffn.up_proj"),
               (2 if c.gated else 1) * c.ffn, WIDTH)
        linear(block + "ffn.down_proj", WIDTH, c.ffn)
    norm("transformer.norm_f")
    if not c.tied:
        shapes["lm_head.weight"] = (VOCAB, WIDTH)
    return shapes


def initial_value(name, shape):
    count = int(np.prod(shape))
    noise = hashed_uniform(name, count)
    if len(shape) == 1 and name.endswith(".weight"):
        value = 1.0 + 0.1 * noise  # gains
    elif len(shape) == 1:
        value = 0.1 * noise
    else:
        value = 0.15 * noise
    return torch.tensor(value.astype(np.float32).reshape(shape), requires_grad=True)


def bigram_rows(tokens, buckets):
    rows = np.zeros(tokens.shape, dtype=np.int64)
    for b in range(tokens.shape[0]):
        previous = -1
        for t in range(tokens.shape[1]):
            token = int(tokens[b, t])
            z = (((previous + 1) << 32 | token) * 0x9E3779B97F4A7C15) & MASK
            z = ((z ^ (z >> 32)) * 0xD6E8FEB86659FD93) & MASK
            z ^= z >> 32
            rows[b, t] = z % buckets
            previous = token
    return torch.tensor(rows)


def layer_norm(x, gain, bias, rms):
    if rms:
        y = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS)
    else:
        centred = x - x.mean(-1, keepdim=True)
        y = centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + EPS)
    if gain is not None:
        y = y * gain
    if bias is not None:
        y = y + bias
    return y


def activate(kind, x):
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))
    if kind == "gelu":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if kind == "silu":
        return x * torch.sigmoid(x)
    return torch.clamp(x, min=0) ** 2


def rotate(x):  # [B, T, heads, D], half-split pairs
    half = x.shape[-1] // 2
    theta = 10000.0 ** (-2 * torch.arange(half, dtype=torch.float64) / (2 * half))
    angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * theta[None]
    cos = torch.cos(angle).to(x.dtype)[None, :, None]
    sin = torch.sin(angle).to(x.dtype)[None, :, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def forward(c, p, tokens):
    rms = c.norm == "rmsnorm"
    x = p["transformer.wte.weight"][tokens]
    if c.bigram:
        x = x + p["transformer.bigram.weight"][bigram_rows(tokens, c.bigram)]
    if c.positions == "learned":
        x = x + p["transformer.wpe.weight"][torch.arange(LENGTH)][None]
    kv = c.kv_heads * c.head
    position = torch.arange(LENGTH)
    distance = position[:, None] - position[None, :]
    allowed = distance >= 0
    if c.window:
        allowed = allowed & (distance < c.window)
    for layer in range(LAYERS):
        block = f"transformer.blocks.{layer}."
        get = lambda name: p.get(block + name)
        h = layer_norm(x, get("norm_1.weight"), get("norm_1.bias"), rms)
        qkv = h @ get("attn.Wqkv.weight").T
        if c.biases:
            qkv = qkv + get("attn.Wqkv.bias")
        if c.clip:
            qkv = torch.clamp(qkv, -c.clip, c.clip)
        q, k, v = qkv.split([WIDTH, kv, kv], -1)
        if c.qk_norm == "layernorm":
            q = layer_norm(q, get("attn.q_ln.weight"), get("attn.q_ln.bias"), False)
            k = layer_norm(k, get("attn.k_ln.weight"), get("attn.k_ln.bias"), False)
        q = q.view(BATCH, LENGTH, HEADS, c.head)
        k = k.view(BATCH, LENGTH, c.kv_heads, c.head)
        v = v.view(BATCH, LENGTH, c.kv_heads, c.head)
        if c.qk_norm == "rms_per_head":
            q, k = layer_norm(q, None, None, True), layer_norm(k, None, None, True)
        if c.positions == "rope":
            q, k = rotate(q), rotate(k)
        group = HEADS // c.kv_heads
        k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(c.head)
        if c.positions == "alibi":
            slopes = torch.tensor([2.0 ** (-8.0 * (i + 1) / HEADS) for i in range(HEADS)],
                                  dtype=x.dtype)
            scores = scores - slopes[None, :, None, None] * distance.to(x.dtype)
        scores = scores.masked_fill(~allowed, -math.inf)
        attention = torch.einsum("bhij,bjhd->bihd", torch.softmax(scores, -1), v)
        out = attention.reshape(BATCH, LENGTH, WIDTH) @ get("attn.out_proj.weight").T
        if c.biases:
            out = out + get("attn.out_proj.bias")
        x = x + out
        h = layer_norm(x, get("norm_2.weight"), get("norm_2.bias"), rms)
        up_name = "ffn.gate_up_proj" if c.gated else "ffn.up_proj"
        u = h @ get(up_name + ".weight").T
        if c.biases:
            u = u + get(up_name + ".bias")
        if c.gated:
            gate, up = u.split([c.ffn, c.ffn], -1)
            h = activate(c.activation, gate) * up
        else:
            h = activate(c.activation, u)
        down = h @ get("ffn.down_proj.weight").T
        if c.biases:
            down = down + get("ffn.down_proj.bias")
        x = x + down
    x = layer_norm(x, p.get("transformer.norm_f.weight"), p.get("transformer.norm_f.bias"), rms)
    logits = x @ p["transformer.wte.weight" if c.tied else "lm_head.weight"].T
    if c.softcap:
        logits = c.softcap * torch.tanh(logits / c.softcap)
    return logits


def batch(name):
    ids = ((hashed_uniform(name, BATCH * (LENGTH + 1)) + 1) / 2 * VOCAB).astype(np.int64)
    ids = torch.tensor(ids.reshape(BATCH, LENGTH + 1))
    targets = ids[:, 1:].clone()
    targets[0, 3] = -100  # one ignored target
    return ids[:, :-1], targets


def loss_of(logits, targets, z_loss):
    lse = torch.logsumexp(logits, -1)
    counted = targets >= 0
    picked = logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return ((lse - picked + z_loss / 2 * lse ** 2) * counted).sum() / counted.sum()


def adamw(p, g, m, v, step, lr=1e-2, b1=0.9, b2=0.95, eps=1e-8, decay=0.1):
    m.mul_(b1).add_(g, alpha=1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    if p.dim() > 1:
        p.mul_(1 - lr * decay)
    p.sub_(lr * (m / (1 - b1 ** step)) / ((v / (1 - b2 ** step)).sqrt() + eps))


def muon(g, buffer, momentum=0.95):
    """One nesterov Muon direction in double (Jordan et al.), before the learning rate."""
    buffer.mul_(momentum).add_(g, alpha=1 - momentum)
    u = (1 - momentum) * g + momentum * buffer
    x = u / (u.norm() + 1e-7)
    flip = x.shape[0] > x.shape[1]
    x = x.T if flip else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    x = x.T if flip else x
    return x * math.sqrt(max(1.0, g.shape[0] / g.shape[1]))


def main():
    folder = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden"
    for c in CONFIGS:
        z_loss = 1e-2 if c.name == "modern" else 0.0
        values = {n: initial_value(f"{c.name}/{n}", s) for n, s in parameter_shapes(c).items()}
        tokens, targets = batch(f"{c.name}/tokens/0")
        # The reference itself in double, so that its own rounding plays no part.
        double = {n: t.detach().double().requires_grad_() for n, t in values.items()}
        logits = forward(c, double, tokens)
        loss = loss_of(logits, targets, z_loss)
        loss.backward()
        out = {"logits": logits.detach().float(), "loss": loss.detach().float().reshape(1)}
        for name, tensor in double.items():
            out["grad." + name] = tensor.grad.float()
        state = {n: (torch.zeros_like(t), torch.zeros_like(t)) for n, t in double.items()}
        losses = []
        for step in range(1, 11):
            tokens, targets = batch(f"{c.name}/tokens/{step}")
            for t in double.values():
                t.grad = None
            loss = loss_of(forward(c, double, tokens), targets, z_loss)
            loss.backward()
            losses.append(loss.item())
            with torch.no_grad():
                for name, t in double.items():
                    adamw(t, t.grad, *state[name], step)
        out["adamw_losses"] = torch.tensor(losses, dtype=torch.float32)
        save_file(out, folder / f"{c.name}.safetensors")
        print(c.name, sum(t.numel() for t in values.values()), losses[0], losses[-1])
    out = {}
    for rows, cols in ((16, 40), (40, 16), (32, 32)):
        p = torch.tensor(hashed_uniform(f"muon/p/{rows}x{cols}", rows * cols).reshape(rows, cols))
        buffer = torch.zeros(rows, cols, dtype=torch.float64)
        for step in range(3):
            g = hashed_uniform(f"muon/g/{rows}x{cols}/{step}", rows * cols).reshape(rows, cols)
            p = p * (1 - 0.02 * 0.1) - 0.02 * muon(torch.tensor(g), buffer)
        out[f"p.{rows}x{cols}"] = p.float()
    save_file(out, folder / "muon.safetensors")


if __name__ == "__main__":
    main()
