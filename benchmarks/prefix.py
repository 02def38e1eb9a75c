"""What `training.layers: last N` gains: the layers below run once a row, against running them in every pass.

    python -m benchmarks.prefix [--quick] [--json FILE]

Both sides train the same trials with adapters on the last third of the layers, in turns: one reads what the frozen layers gave
from the node's cache, the other (`prefix_bytes=0`) computes it again. Timed are passes after the first epoch; an epoch's first
reading, when rows are computed and written, is shown apart. A third side has adapters on all layers, for the whole gain.
Does not know Optuna and Ray. Cost: about 4 minutes for 135 million parameters on one core; `--quick` some seconds on a tiny model.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import Measurement, add_output, at_least, finish, interleaved, median
from benchmarks.limit import demo_lengths
from benchmarks.workload import MemoryDepot, Workload, add_model, train_on, workload

ROWS = 96


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.quick:
        options.model, options.repeats, options.last = "tiny", 2, 1
    with tempfile.TemporaryDirectory(prefix="prefix-") as scratch:
        before, os.environ["SWEEPER_CACHE"] = os.environ.get("SWEEPER_CACHE"), scratch
        try:
            rows = _measure(workload(options, Path(scratch)), options)
        finally:
            if before is None:
                del os.environ["SWEEPER_CACHE"]
            else:
                os.environ["SWEEPER_CACHE"] = before
    seconds = {str(row["side"]): float(row["seconds"]) for row in rows}
    goals = [] if options.quick else [at_least("computed over read", 1.5, seconds["computed"] / seconds["read"], "x")]
    return finish(Measurement("prefix", rows, goals), options.json)


def _measure(work: Workload, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a side: seconds for an epoch of every trial."""
    folder = work.rows("train", demo_lengths(ROWS))
    last = f"last {options.last}"
    sides = {
        "read": _Side(work, folder, options, last, None),
        "computed": _Side(work, folder, options, last, 0),
        "all layers": _Side(work, folder, options, "all", None),
    }
    first = {name: side.epoch() for name, side in sides.items()}
    found = interleaved({name: side.epoch for name, side in sides.items()}, options.repeats)
    for side in sides.values():
        side.engine.close()
    reading = median(found["read"])
    return [
        {
            "side": name,
            "layers": sides[name].layers,
            "trials": options.trials,
            "batch": options.batch,
            "first_epoch_seconds": first[name],
            "seconds": median(times),
            "times_as_long": median(times) / reading,
        }
        for name, times in found.items()
    ]


class _Side:
    """An engine with its trials, which train for ever."""

    def __init__(self, work: Workload, folder: Path, options: argparse.Namespace, layers: str, room: int | None) -> None:
        from sweeper.engine.engine import TrialEngine

        setup = work.setup(folder, folder, options.trials, options.threads, options.micro_tokens)
        training = setup.training.model_copy(update={"layers": layers})
        self.layers = layers
        self.engine = TrialEngine(replace(setup, training=training, prefix_bytes=room), MemoryDepot())
        for number in range(options.trials):
            self.engine.admit(work.trial(number, options.batch))

    def epoch(self) -> float:
        """Seconds until every trial has seen ROWS more examples."""
        return train_on(self.engine, ROWS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prefix", description="The frozen layers once a row, or in every pass."
    )
    add_model(parser)
    parser.add_argument("--last", type=int, default=10, help="layers that carry adapters (of 30)")
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--micro-tokens", type=int, help="tokens at most that share one pass (default: as in a sweep)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tiny model, no goal")
    add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
