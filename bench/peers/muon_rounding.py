#!/usr/bin/env python3
"""How far Muon's Newton-Schulz steps in bf16 are from the formula in fp64, for several ways to take
them and spreads of singular values; the worst relative error of five matrices each.

  .venv/bin/python bench/peers/muon_rounding.py

Columns: every tensor in bf16 (the usual form); steps on X with the scaled X kept in fp32; steps on the
Gram matrix in phases, with symmetric products mirrored as src/kernels/cpu/muon_kernels.cc does.
"""
import torch

A, B, C = 3.4445, -4.7750, 2.0315
PHASES = ([3, 1, 1], [2, 2, 1], [3, 2], [4, 1], [5])


def rounded(x):
    return x.to(torch.bfloat16).to(torch.float32)


def mirrored(x):
    return torch.triu(x) + torch.triu(x, 1).T


def exact(x):
    x = x.double() / x.double().norm()
    for _ in range(5):
        gram = x @ x.T
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x


def usual(x):
    x = rounded(x / x.norm())
    for _ in range(5):
        gram = rounded(x @ x.T)
        factor = rounded(B * gram + rounded(C * rounded(gram @ gram)))
        x = rounded(rounded(A * x) + rounded(factor @ x))
    return x


def on_x(x):
    x = x / x.norm()
    for _ in range(5):
        low = rounded(x)
        gram = rounded(low @ low.T)
        x = A * low + rounded(B * gram + C * (gram @ gram)) @ low
    return x


def in_phases(x, phases):
    x = x / x.norm()
    for steps in phases:
        low = rounded(x)
        gram, q, rest = mirrored(low @ low.T), 1.0, None
        for step in range(steps):
            factor = rounded(gram)
            n = B * gram + C * mirrored(factor @ factor)
            if rest is None:
                rest = n
            else:
                rest = A * rest + q * n + mirrored(rounded(n) @ rounded(rest))
            q *= A
            if step + 1 < steps:
                inner = rounded(2 * A * gram + mirrored(rounded(n) @ factor))
                gram = A * A * gram + mirrored(rounded(n) @ inner)
        x = q * low + rounded(rest) @ low
    return x


def matrix(rows, cols, decades):
    x = torch.randn(rows, cols)
    if decades == 0:
        return x
    left, _ = torch.linalg.qr(torch.randn(rows, rows))
    right, _ = torch.linalg.qr(torch.randn(cols, rows))
    return (left * 10 ** (-decades * torch.linspace(0, 1, rows))) @ right.T


def main():
    names = ["bf16", "on X"] + ["+".join(map(str, p)) for p in PHASES]
    print(f"{'matrix':<12}{'decades':>8}" + "".join(f"{name:>8}" for name in names))
    for rows, cols in ((24, 70), (64, 256), (256, 1024)):
        for decades in (0, 2, 4):
            worst = torch.zeros(len(names))
            for seed in range(5):
                torch.manual_seed(seed)
                x = matrix(rows, cols, decades)
                want = exact(x).float()
                got = [usual(x), on_x(x)] + [in_phases(x, p) for p in PHASES]
                errors = torch.stack([(y - want).norm() / want.norm() for y in got])
                worst = torch.maximum(worst, errors)
            print(f"{rows} x {cols}".ljust(12) + f"{decades:>8}"
                  + "".join(f"{error:8.3f}" for error in worst.tolist()))


if __name__ == "__main__":
    main()
