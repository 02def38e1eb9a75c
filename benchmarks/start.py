"""What it gains that tokens which all rows begin with are computed once a chunk, against computing every row whole.

    python -m benchmarks.start [--starts 2,16,64] [--quick] [--json FILE]

A trial trains on rows of the demo's lengths behind an instruction of so many tokens. Both sides are the same engine, in turns: one
shares the instruction among the rows of a chunk, the other is told that rows have nothing in common. Rows with less in common than
`sweeper.engine.start.FEWEST` tokens are computed whole on both sides.
Does not know Optuna and Ray, or other frameworks. Cost: about 5 minutes for 135 million parameters on one core; `--quick` some
seconds on a tiny model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Goal, Measurement, add_output, at_least, finish, interleaved, median, numbers
from benchmarks.limit import demo_lengths
from benchmarks.workload import MemoryDepot, Workload, add_model, train_on, workload

ROWS = 48
GOALS = {2: 1.0, 64: 1.8}
"""Times as fast, by shared tokens: a template's two words must not cost more than they save."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.quick:
        options.model, options.repeats = "tiny", 2
    with tempfile.TemporaryDirectory(prefix="start-") as scratch:
        work = workload(options, Path(scratch))
        rows = [_measure(work, start, options) for start in options.starts]
    return finish(Measurement("start", rows, [] if options.quick else _goals(rows)), options.json)


def _goals(rows: Sequence[dict[str, Any]]) -> list[Goal]:
    return [
        at_least(f"rows computed whole over shared, {row['shared_tokens']} tokens in common", least, row["ratio"], "x")
        for row in rows
        if (least := GOALS.get(row["shared_tokens"])) is not None
    ]


def _measure(work: Workload, start: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds to train on ROWS rows, both ways."""
    lengths = [start + length for length in demo_lengths(ROWS)]
    folder = work.rows(f"train-{start}", lengths, start)
    sides = {"shared": _Side(work, folder, options, True), "whole": _Side(work, folder, options, False)}
    for side in sides.values():
        side.epoch()  # warms up
    found = {name: median(times) for name, times in interleaved({n: s.epoch for n, s in sides.items()}, options.repeats).items()}
    for side in sides.values():
        side.engine.close()
    return {
        "shared_tokens": start,
        "row_tokens": sum(lengths) / ROWS,
        "batch": options.batch,
        "dtype": options.dtype,
        **{f"{name}_seconds": seconds for name, seconds in found.items()},
        "ratio": found["whole"] / found["shared"],
    }


class _Side:
    """An engine with one trial, which trains for ever."""

    def __init__(self, work: Workload, folder: Path, options: argparse.Namespace, shares: bool) -> None:
        from sweeper.engine.engine import TrialEngine

        self.engine = TrialEngine(work.setup(folder, folder, 1, options.threads), MemoryDepot())
        if not shares:
            self.engine._net.begin_with(np.empty(0, np.int32))
        self.engine.admit(work.trial(0, options.batch))

    def epoch(self) -> float:
        """Seconds until the trial has seen ROWS more examples."""
        return train_on(self.engine, ROWS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.start", description="What all rows begin with, computed once or in every row."
    )
    add_model(parser)
    parser.add_argument("--starts", type=numbers, default=[2, 16, 64], help="tokens that all rows begin with")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tiny model, no goal")
    add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
