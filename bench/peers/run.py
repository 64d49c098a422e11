#!/usr/bin/env python3
"""Tessera beside its peers: every row alternates ours and theirs, then prints medians and ratios.

  bench/peers/run.py                       all rows, three rounds (about an hour on two cores)
  bench/peers/run.py --only load --only tokenize --rounds 5
  bench/peers/run.py --quick               one round with few steps: does everything work?
  bench/peers/run.py --llmc DIR            also llm.c's CPU trainer, from a checkout that you built
  bench/peers/run.py --store s3://bucket/prefix    also object stores (see store.sh for the keys)

Installs the peers with scripts/peers.sh where .venv lacks them; builds nothing: build/release/tessera
must exist. --json FILE writes every single measurement. A row's ratio is the median of ours over the
median of the best peer (the other way round for seconds and memory), so above 1 is in our favour.
The rows of training find the best peer first; then ours and that one stay in memory and take turns of a
few seconds. Their ratio is the median over ours' turns of the peer's seconds right before and after.
"""
import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv/bin/python"
PEERS = pathlib.Path(__file__).resolve().parent


class Failed(Exception):
    pass


class TooSlow(Failed):
    pass


def run(command, environment=None, limit_s=None):
    """The JSON value that a command prints, with its peak memory. TooSlow after limit_s seconds."""
    output = tempfile.TemporaryFile("w+")
    errors = tempfile.TemporaryFile("w+")
    process = subprocess.Popen([str(c) for c in command], stdout=output, stderr=errors, cwd=ROOT,
                               env={**os.environ, **(environment or {})})
    stopped = threading.Event()
    timer = threading.Timer(limit_s or 0, lambda: (stopped.set(), process.kill()))
    if limit_s:
        timer.start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    timer.cancel()
    if stopped.is_set() and process.returncode == -signal.SIGKILL:
        raise TooSlow(f"no result in {limit_s:.0f} s")
    output.seek(0)
    errors.seek(0)
    text = output.read()
    if process.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))} ended with {process.returncode}: "
                     + (errors.read() + text)[-600:])
    start = min((i for i in (text.find("{"), text.find("[")) if i >= 0), default=-1)
    if start < 0:
        raise Failed(f"{' '.join(map(str, command))} printed no JSON")
    value = json.loads(text[start:])
    if isinstance(value, dict):
        value["max_rss_bytes"] = usage.ru_maxrss * 1024
    return value


class Turns:
    """A program that runs steps when told to (turns.py), in memory from its start to summary()."""

    def __init__(self, command):
        self.command = [str(c) for c in command]
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.errors, cwd=ROOT, text=True)
        self.answer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()

    def stopped(self):
        self.errors.seek(0)
        return Failed(f"{' '.join(self.command)} stopped: {self.errors.read()[-600:]}")

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise self.stopped()
        return json.loads(line)

    def seconds(self, steps):
        try:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self.stopped() from None
        return self.answer()["seconds"]

    def summary(self):
        """What the program prints at its end, with its peak memory."""
        self.process.stdin.close()
        text = self.process.stdout.read()
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode != 0:
            raise self.stopped()
        return {**json.loads(text), "max_rss_bytes": usage.ru_maxrss * 1024}


@dataclasses.dataclass
class Figure:
    """One line of the table: a value that several programs reach."""
    name: str
    unit: str
    lower_is_better: bool = False
    target: float = 0  # the ratio asked for; 0: none
    ours: dict = dataclasses.field(default_factory=dict)    # variant -> measurements
    theirs: dict = dataclasses.field(default_factory=dict)
    pairs: dict = dataclasses.field(default_factory=dict)   # our variant -> ratios of its turns

    def add(self, side, variant, value):
        getattr(self, side).setdefault(variant, []).append(value)

    def best(self, side):
        medians = {k: statistics.median(v) for k, v in getattr(self, side).items()}
        if not medians:
            return None, None
        pick = min if self.lower_is_better else max
        name = pick(medians, key=medians.get)
        return name, medians[name]

    def ratio(self):
        if self.pairs:
            return max(statistics.median(ratios) for ratios in self.pairs.values())
        ours, theirs = self.best("ours")[1], self.best("theirs")[1]
        if not ours or not theirs:
            return None
        return theirs / ours if self.lower_is_better else ours / theirs


class Row:
    once = False  # its rounds are turns inside round()

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.tessera = str(ROOT / "build/release/tessera")

    def prepare(self):
        pass

    def bench_train(self, *arguments):
        return run([self.tessera, "bench", "train", "--json", *arguments])


class Training(Row):
    """Ours in both precisions and the best peer, in turns of `turn` steps."""
    once = True
    tokens = 0  # of a step
    turn = 1    # steps
    cycles = 8  # turns of each program

    def run_peers(self, peers, steps):
        """The results of the commands in `peers` (name -> command), the likely best first. A variant
        that takes twice as long as the fastest one so far, and minutes, is stopped and left out."""
        results, fastest = {}, None
        for name, command in peers.items():
            start = time.monotonic()
            try:
                results[name] = run([*command, "--steps", steps],
                                    limit_s=fastest and max(180, 2 * fastest))
            except TooSlow as slow:
                print(f"run.py: {self.name}: {name}: {slow}, {fastest:.0f} s are enough for another "
                      "variant: left out", file=sys.stderr, flush=True)
                continue
            taken = time.monotonic() - start
            fastest = min(taken, fastest or taken)
        return results

    def take_turns(self, figure, ours, name, theirs):
        """Adds `cycles` turns of each of `ours` (variant -> command) between turns of the peer called
        `name`. The summaries of ours and of the peer."""
        cycles = 1 if self.options.quick else self.cycles
        with contextlib.ExitStack() as stack:
            peer = stack.enter_context(Turns(theirs))
            programs = {variant: stack.enter_context(Turns(command))
                        for variant, command in ours.items()}
            rate = self.tokens * self.turn
            before = peer.seconds(self.turn)
            for cycle in range(cycles):
                print(f"run.py: {self.name}, turn {cycle + 1} of {cycles}", file=sys.stderr, flush=True)
                for variant, program in programs.items():
                    seconds = program.seconds(self.turn)
                    after = peer.seconds(self.turn)
                    figure.add("ours", variant, rate / seconds)
                    figure.add("theirs", name, rate / after)
                    figure.pairs.setdefault(variant, []).append((before + after) / 2 / seconds)
                    before = after
            return ({variant: program.summary() for variant, program in programs.items()},
                    peer.summary())


class Gpt2(Training):
    """GPT-2 124M, batch 4 x 1024, AdamW."""
    name = "gpt2"
    tokens = 4 * 1024

    def figures(self):
        return [Figure("train GPT-2 124M, 4 x 1024", "tokens/s", target=1.3),
                Figure("peak memory of that", "GB", lower_is_better=True, target=1 / 0.6)]

    def round(self, figures):
        speed, memory = figures
        peers = {f"PyTorch {dtype}{' compiled' if compiled else ''}":
                 [PYTHON, PEERS / "gpt2_torch.py", "--dtype", dtype,
                  *(["--compile"] if compiled else [])]
                 for dtype in ("fp32", "bf16") for compiled in (True, False)}
        results = self.run_peers(peers, 1 if self.options.quick else 2)
        for name, result in results.items():
            speed.add("theirs", name, result["tokens_per_s"])
            memory.add("theirs", name, result["max_rss_bytes"] / 1e9)
        best = speed.best("theirs")[0]
        # Passes of one sequence give the bits of one pass over all four, and outputs of norms and
        # activations computed twice those of kept ones, in less memory.
        ours, theirs = self.take_turns(
            speed, {precision: [self.tessera, "bench", "train", "--json", "--turns", "--model",
                                "gpt2-124m", "--seq", 1024, "--batch", 4, "--microbatch", 1,
                                "--recompute", "norm", "--precision", precision]
                    for precision in ("fp32", "amp_bf16")},
            best, [*peers[best], "--turns"])
        for precision, summary in ours.items():
            memory.add("ours", precision, summary["max_rss_bytes"] / 1e9)
        memory.add("theirs", best, theirs["max_rss_bytes"] / 1e9)


class Small(Training):
    """The quickstart's shape, 5M parameters: width 256, 4 layers, batch 8 x 256."""
    name = "small"
    tokens = 8 * 256
    turn = 8
    cycles = 16

    def figures(self):
        return [Figure(f"train 5M, 8 x 256, {rule}", "tokens/s", target=2)
                for rule in ("AdamW", "Muon")]

    def round(self, figures):
        for figure, rule in zip(figures, ("adamw", "muon")):
            peers = {f"PyTorch {dtype} compiled":
                     [PYTHON, PEERS / "quickstart_torch.py", "--dtype", dtype,
                      *(["--adamw"] if rule == "adamw" else [])] for dtype in ("fp32", "bf16")}
            for name, result in self.run_peers(peers, 2 if self.options.quick else 10).items():
                figure.add("theirs", name, result["tokens_per_s"])
            best = figure.best("theirs")[0]
            self.take_turns(
                figure, {precision: [self.tessera, "bench", "train", "--json", "--turns", "--model",
                                     "modern-10m", "--layers", 4, "--vocab", 4096, "--seq", 256,
                                     "--batch", 8, "--optimizer", rule, "--precision", precision]
                         for precision in ("fp32", "amp_bf16")},
                best, [*peers[best], "--turns"])


class Llmc(Row):
    """llm.c's CPU trainer at its own batch, 4 x 64, and a model of 1M parameters."""
    name = "llmc"

    def figures(self):
        return [Figure("train GPT-2 124M, 4 x 64", "tokens/s", target=6),
                Figure("train GPT-2 shape 1M, 4 x 64", "tokens/s", target=1)]

    def round(self, figures):
        shapes = ((12, 768, 12, 50257), (4, 128, 4, 2048))
        for figure, (layers, width, heads, vocab) in zip(figures, shapes):
            steps = (1 if self.options.quick else 4) if layers == 12 else 18
            for precision in ("fp32", "amp_bf16"):
                result = self.bench_train(
                    "--model", "gpt2-124m", "--layers", layers, "--width", width, "--heads", heads,
                    "--vocab", vocab, "--seq", 64, "--batch", 4, "--precision", precision,
                    "--steps", steps)
                figure.add("ours", precision, result["tokens_per_s"])
            result = run([sys.executable if not PYTHON.exists() else PYTHON,
                          PEERS / "llmc_train.py", self.options.llmc, "--steps", steps,
                          "--layers", layers, "--width", width, "--heads", heads, "--vocab", vocab])
            figure.add("theirs", "llm.c fp32", result["tokens_per_s"])


class Tokenize(Row):
    """Byte-level BPE, 16k entries, on the sources of python3-doc."""
    name = "tokenize"

    def prepare(self):
        self.files = self.options.text or "/usr/share/doc/python3-doc/html/_sources"
        if not pathlib.Path(self.files).exists():
            raise Failed(f"{self.files} does not exist: install python3-doc (scripts/packages.sh), "
                         "or give --text")
        self.tokenizer = str(self.folder / "tokenizer.json")
        # The same documents that the peers read, whatever their extension.
        self.corpus = self.folder / "corpus"
        self.corpus.mkdir(exist_ok=True)
        source = pathlib.Path(self.files)
        paths = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
        for i, path in enumerate(paths):
            try:
                text = path.read_bytes().decode("utf-8")
            except UnicodeDecodeError:
                continue
            (self.corpus / f"{i:05}.txt").write_text(text)
        subprocess.run([self.tessera, "tokenizer", "train", self.corpus, "--vocab-size", "16384",
                        "--output", self.tokenizer], check=True, cwd=ROOT,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def figures(self):
        return [Figure("encode, one thread, cold", "MB/s", target=4),
                Figure("train 16k merges, all cores", "s", lower_is_better=True, target=3)]

    def round(self, figures):
        encode, train = figures
        result = run([self.tessera, "bench", "tokenize", "--files", str(self.corpus), "--tokenizer",
                      self.tokenizer, "--threads", 1, "--repeats", 1, "--json"])
        encode.add("ours", "tessera", result["encode"][0]["cold_mb_per_s"])
        tokens = result["tokens"]
        result = run([PYTHON, PEERS / "tokenizers_peer.py", "encode", self.tokenizer, self.corpus])
        if not result["same_ids"] or result["tokens"] != tokens:
            raise Failed(f"the ids differ: {tokens} tokens here, {result}")
        encode.add("theirs", "tiktoken", result["tiktoken_mb_per_s"])
        encode.add("theirs", "tokenizers", result["tokenizers_mb_per_s"])
        result = run([self.tessera, "bench", "tokenize", "--files", str(self.corpus), "--repeats", 1,
                      "--vocab-size", 16384, "--json"])
        train.add("ours", "tessera", result["train_seconds"])
        result = run([PYTHON, PEERS / "tokenizers_peer.py", "train", 16384, self.corpus])
        train.add("theirs", "tokenizers", result["train_seconds"])


class Load(Row):
    """A dataset of mosaicml-streaming, 2,048 int32 tokens a sample, read by one process each."""
    name = "load"

    def prepare(self):
        self.dataset = str(self.folder / "mds")
        subprocess.run([str(PYTHON), str(PEERS / "streaming_read.py"), self.dataset, "--make",
                        "2048" if self.options.quick else "16384"], check=True, cwd=ROOT,
                       stdout=subprocess.DEVNULL)

    def figures(self):
        return [Figure("read samples in order", "samples/s", target=10),
                Figure("read samples at random", "samples/s", target=10),
                Figure("shuffled training batches", "samples/s", target=10)]

    def round(self, figures):
        seconds = 1 if self.options.quick else 3
        ours = run([self.tessera, "bench", "load", "--dataset", self.dataset, "--json", "--seconds",
                    seconds, "--sequence-length", 2048, "--batch", 16])
        theirs = run([PYTHON, PEERS / "streaming_read.py", self.dataset, "--seconds", seconds])
        keys = (("stored_sequential_per_s", "sequential_per_s"),
                ("stored_random_per_s", "random_per_s"), ("samples_per_s", "iterated_per_s"))
        for figure, (our_key, their_key) in zip(figures, keys):
            figure.add("ours", "tessera", ours[our_key])
            figure.add("theirs", "streaming", theirs[their_key])


class Store(Row):
    """Copying 1 MB objects to and from an S3 store, in turns that the script takes."""
    name = "store"
    once = True

    def figures(self):
        return [Figure("put 1 MB objects", "s", lower_is_better=True, target=3),
                Figure("get 1 MB objects", "s", lower_is_better=True, target=3)]

    def round(self, figures):
        count = 50 if self.options.quick else 1000
        for result in run([PEERS / "store.sh", self.options.store, count, self.options.rounds]):
            side = "ours" if result["tool"].startswith("tessera") else "theirs"
            for figure, key in zip(figures, ("puts_s", "gets_s")):
                for seconds in result[key]:
                    figure.add(side, result["tool"], seconds)


ROWS = [Gpt2, Small, Llmc, Tokenize, Load, Store]


def number(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def spread(values):
    return number(statistics.median(values)) + (
        f" ({number(min(values))}..{number(max(values))})" if len(values) > 1 else "")


def table(figures):
    lines = [("", "ours: median (min..max)", "best peer", "ratio", "asked")]
    for figure in figures:
        (ours, _), (theirs, _) = figure.best("ours"), figure.best("theirs")
        ratio = figure.ratio()
        lines.append((
            f"{figure.name} [{figure.unit}]",
            f"{spread(figure.ours[ours])} {ours}" if ours else "-",
            f"{spread(figure.theirs[theirs])} {theirs}" if theirs else "-",
            f"{ratio:.2f}" if ratio else "-", f"{figure.target:.2f}" if figure.target else ""))
        for side in ("ours", "theirs"):
            for variant, values in getattr(figure, side).items():
                if variant not in (ours, theirs):
                    cells = ["", "", "", "", ""]
                    cells[1 if side == "ours" else 2] = f"{spread(values)} {variant}"
                    lines.append(tuple(cells))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
                     for line in lines)


def machine():
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return {"processor": model[1] if model else platform.processor(),
            "cores": len(os.sched_getaffinity(0)), "system": platform.platform(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], choices=[r.name for r in ROWS])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of every row but training, whose turns are fixed")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--text", help="a file or folder for the tokenizers")
    parser.add_argument("--llmc", metavar="DIR", help="a checkout of llm.c with train_gpt2 built")
    parser.add_argument("--store", metavar="URL", help="s3://bucket/prefix")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    rounds = 1 if options.quick else options.rounds
    if not (ROOT / "build/release/tessera").exists():
        sys.exit("run.py: build/release/tessera does not exist: "
                 "cmake --preset release && cmake --build --preset release")
    wanted = [r for r in ROWS if not options.only or r.name in options.only]
    for name, given, how in (("llmc", options.llmc, "--llmc DIR"),
                             ("store", options.store, "--store URL")):
        if not given and any(r.name == name for r in wanted):
            if name in options.only:
                parser.error(f"the row {name} needs {how}")
            print(f"run.py: the row {name} is left out: it needs {how}", file=sys.stderr)
            wanted = [r for r in wanted if r.name != name]
    subprocess.run([str(ROOT / "scripts/peers.sh")], check=True, stdout=sys.stderr)

    figures, failures = [], []
    with tempfile.TemporaryDirectory(prefix="tessera-peers-") as folder:
        for kind in wanted:
            row = kind(options, pathlib.Path(folder))
            mine = row.figures()
            try:
                row.prepare()
                mine_rounds = 1 if row.once else rounds
                for i in range(mine_rounds):
                    print(f"run.py: {row.name}, round {i + 1} of {mine_rounds}", file=sys.stderr,
                          flush=True)
                    row.round(mine)
            except (Failed, subprocess.CalledProcessError) as error:
                failures.append(f"{row.name}: {error}")
                print(f"run.py: {failures[-1]}", file=sys.stderr)
            figures += mine
    print(table(figures))
    if options.json:
        rows = [{**dataclasses.asdict(f), "ratio": f.ratio()} for f in figures]
        text = json.dumps({"machine": machine(), "rounds": rounds, "rows": rows,
                           "failures": failures}, indent=2)
        target = pathlib.Path(options.json)
        temporary = target.with_name(target.name + ".tmp")
        temporary.write_text(text + "\n")
        temporary.replace(target)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
