"""How far the engine is from the limit: its time for a piece of work against the bare matrix products of that work.

    python -m benchmarks.limit [--quick] [--json FILE]

The work: 8 trials, each with its own batch size from 4 to 32, on rows of the demo's lengths, with an evaluation after every 48
examples. Timed are `step` calls alone: neither loading, nor admission, nor control. The floor is `gemms.py`'s: frozen products
forward and backward and the head at predicted positions, each at the row count that suits it best, the knee. It leaves out
low-rank updates, attention, norms and the optimizer, so 1.0 cannot be reached.
Runs without Optuna and Ray, on a CPU or a GPU, with the threads of one engine. Does not know other frameworks.
Cost: about 20 minutes for 135 million parameters on one core (`--repeats 1`: 7); `--quick` some seconds on a tiny model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Measurement, add_output, at_most, finish, median
from benchmarks.workload import LABELS, TARGETS, Workload, add_model, workload

EVERY = 48
BATCHES = (4, 8, 16, 32, 4, 8, 16, 32)
LENGTHS = (12, 60)  # of the demo's rows, nine in ten lie between; the mean is about 30
VALIDATION = 32
KNEE = (128, 256, 512, 1024)
KNEE_CUDA = (1024, 4096, 16384)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.quick:
        options.model, options.examples, options.repeats = "tiny", 48, 1
        options.micro_tokens = options.micro_tokens or 256
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="limit-") as scratch:
        work = workload(options, Path(scratch))
        rows = _measure(work, options)
    ratio = median([float(row["ratio"]) for row in rows])
    goals = [] if options.quick else [at_most("time over that of the bare products, median", 1.5, ratio, "x")]
    return finish(Measurement("limit", rows, goals), options.json)


def _measure(work: Workload, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a repeat: the products before, the engine, the products after; the floor is the better of the two."""
    from benchmarks.gemms import Products, shapes

    train = work.rows("train", demo_lengths(options.examples))
    validation = work.rows("validation", demo_lengths(VALIDATION))
    products = Products(shapes(work.model), work.dtype, work.device)
    sizes = KNEE if work.device == "cpu" else KNEE_CUDA
    engine = _Engine(work, train, validation, options)
    rows = []
    floors = [products.floor(size) for size in sizes]
    for repeat in range(options.repeats):
        seconds, train_seconds, done = engine.run(options.examples)
        after = [products.floor(size) for size in sizes]
        least = min(done.seconds(floors), done.seconds(after))
        floors = after
        rows.append(
            {
                "repeat": repeat,
                "dtype": work.dtype,
                "threads": options.threads,
                "trials": len(BATCHES),
                "trained_tokens": done.trained,
                "read_tokens": done.read,
                "seconds": seconds,
                "train_share": train_seconds / seconds,
                "products_seconds": least,
                "ratio": seconds / least,
            }
        )
        print(f"repeat {repeat}: {seconds:.1f} s, bare products {least:.1f} s, ratio {seconds / least:.2f}", flush=True)
    engine.close()
    return rows


class _Engine:
    """One engine for all repeats; the first pass warms it up."""

    def __init__(self, work: Workload, train: Path, validation: Path, options: argparse.Namespace) -> None:
        from benchmarks.measured import measure
        from benchmarks.workload import MemoryDepot
        from sweeper.data.tokens import TokenSet
        from sweeper.engine.engine import TrialEngine

        tokens = options.micro_tokens or measure(work, train, 8, options.threads).knee
        print(f"at most {tokens} tokens share a pass", flush=True)
        setup = work.setup(train, validation, len(BATCHES), options.threads, tokens)
        # A full budget of `examples`, so that evaluations read as many rows as in a sweep.
        self._setup = replace(setup, full_examples=options.examples, evaluate=setup.evaluate.model_copy(update={"every": EVERY}))
        self._work = work
        self._engine = TrialEngine(self._setup, MemoryDepot())
        self._validation = TokenSet(validation).info
        self._next = 0

    def run(self, examples: int) -> tuple[float, float, Any]:
        """Seconds of all `step` calls, those of training among them, and what was done (a gemms.Work)."""
        from benchmarks.gemms import Work
        from sweeper.engine.base import Ended
        from sweeper.records import ReportKind

        clock = range(EVERY, examples, EVERY)
        for batch in BATCHES:
            self._engine.admit(self._work.trial(self._next, batch, examples, tuple(clock)))
            self._next += 1
        seconds = trained = train_seconds = rows = 0.0
        while self._engine.trials():
            began = time.perf_counter()
            events = self._engine.step()
            seconds += time.perf_counter() - began
            for event in events:
                if isinstance(event, Ended):
                    trained += event.outcome.tokens
                    train_seconds += event.outcome.train_seconds
                elif event.kind is not ReportKind.PROGRESS:
                    rows += event.rows
        # A validation row is its prompt with a branch per label; read is what follows the prompt, and each branch's tokens.
        mean = self._validation.tokens / self._validation.rows - TARGETS
        branches = sum(len(label) - 1 for label in LABELS)
        read, scored = rows * (mean + branches), rows * (1 + branches)
        return seconds, train_seconds, Work(int(trained), examples * len(BATCHES) * TARGETS, int(read), int(scored))

    def close(self) -> None:
        self._engine.close()


def demo_lengths(count: int) -> list[int]:
    """Row lengths like the demo's: drawn from a gamma distribution of mean 30, the same for every call."""
    drawn = np.random.default_rng(1).gamma(6.0, 5.0, count)
    return [int(x) for x in np.clip(drawn, *LENGTHS)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limit", description="The engine against bare matrix products.")
    add_model(parser)
    parser.add_argument("--examples", type=int, default=144, help="of each of the 8 trials")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--micro-tokens", type=int, help="tokens at most that share one pass (default: the measured knee)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tiny model, no goal")
    add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
