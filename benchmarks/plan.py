"""Forecasts against the truth: sweeps of the demo's size, each planned first, then run.

    python -m benchmarks.plan [--spec SPEC] [--sweeps N] [--first N] [--seconds S] [--keep FILE] [--quick] [--json FILE]

Each sweep is another one: trials, rows, batch sizes, epochs, rank, sampler, pruner and seed differ. `sweeper plan` probes and
forecasts in this process, then `sweeper run` runs the sweep, and the seconds that its trainers took are held against the 80 %
interval. With `--keep` what was found goes to a file of JSON lines and is read from there again, so that ten sweeps can be run in
parts. An interval that always holds the truth would be too wide: its mean width is in the table.
Does not know how a forecast is made. Cost: a minute and the sweep, each: one and a half hours for all ten of the demo's on two
cores; `--quick` runs one, and has no goal.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Goal, Measurement, add_output, finish
from sweeper.errors import UserError

SWEEPS: tuple[Mapping[str, object], ...] = (
    {},
    {"search.seed": 1, "search.trials": 8},
    {"search.pruner": "none", "search.trials": 5},
    {"space.batch_size": {"low": 4, "high": 32, "log": True}, "search.seed": 2},
    {"data.limit.train": 144, "search.trials": 10, "search.seed": 3},
    {"data.limit.train": 320, "search.trials": 6},
    {"search.sampler": "random", "search.seed": 5, "search.rungs": [0.1, 0.5]},
    {"search.pruner": "median", "search.seed": 6, "search.trials": 9},
    {"training.epochs": 2, "data.limit.train": 112, "search.seed": 7, "search.trials": 8},
    {"training.rank": 16, "space.batch_size": [4], "search.trials": 6},
)
"""What each sweep changes of the spec."""

GOAL = 0.7


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures; returns the exit code."""
    options = _parser().parse_args(arguments)
    chosen = range(options.first, min(len(SWEEPS), options.first + (1 if options.quick else options.sweeps)))
    seconds = min(options.seconds, 3.0) if options.quick else options.seconds
    rows = [json.loads(line) for line in options.keep.read_text().splitlines()] if options.keep and options.keep.exists() else []
    try:
        for number in chosen:
            row = measure(options.spec, number, seconds, options.home)
            rows.append(row)
            if options.keep:
                with options.keep.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            print(f"sweep {number}: forecast {row['low']:.0f} to {row['high']:.0f} s, took {row['took']:.0f} s", file=sys.stderr)
    except UserError as error:
        print(f"benchmarks.plan: {error}", file=sys.stderr)
        return 2
    goals = [] if options.quick else [goal(rows)]
    return finish(Measurement("plan", rows, goals), options.json)


def measure(spec: Path, number: int, seconds: float, home: Path | None = None) -> dict[str, Any]:
    """Plans and runs sweep `number` in a home of its own, or in `home`."""
    import sweeper
    from sweeper.sweep.plan import plan

    overrides = [f"{key}={json.dumps(value)}" for key, value in {**SWEEPS[number], "name": f"plan-{number}"}.items()]
    with tempfile.TemporaryDirectory(prefix="sweeper-plan-") as folder:
        place = home or Path(folder)
        ahead = plan(spec, overrides=overrides, home=place, seconds=seconds)
        result = sweeper.run(spec, overrides=overrides, home=place)
    assert result.expected is not None
    assert result.expected.took is not None
    took, forecast = result.expected.took, ahead.forecast
    pruned = sum(trial.state is sweeper.TrialState.PRUNED for trial in result.trials)
    return {
        "sweep": number,
        "trials": len(result.trials),
        "low": forecast.seconds.low,
        "mid": forecast.seconds.mid,
        "high": forecast.seconds.high,
        "took": took,
        "inside": forecast.seconds.holds(took),
        "off": took / forecast.seconds.mid - 1,
        "pruned_low": forecast.pruned.low,
        "pruned_high": forecast.pruned.high,
        "pruned": pruned,
        "changes": ", ".join(f"{key} {value}" for key, value in SWEEPS[number].items()) or "-",
    }


def goal(rows: Sequence[Mapping[str, Any]]) -> Goal:
    """How many of the intervals hold the truth."""
    inside = sum(bool(row["inside"]) for row in rows)
    least = round(GOAL * len(rows))
    width = sum((row["high"] - row["low"]) / row["mid"] for row in rows) / len(rows) if rows else 0.0
    measured = f"{inside} of {len(rows)} (mean width {width:.0%} of the median)"
    return Goal("truth inside the 80 % interval", f"at least {least} of {len(rows)}", measured, inside >= least and bool(rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description="Forecasts of whole sweeps against the truth.")
    parser.add_argument("--spec", type=Path, default=Path("search_spaces/demo.yaml"), help="what is planned and run, with changes")
    parser.add_argument(
        "--sweeps", type=int, default=len(SWEEPS), help=f"how many of the {len(SWEEPS)}; 0: only show what was kept"
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each probe")
    parser.add_argument("--home", type=Path, help="a home to use for all, so that model and rows are prepared once")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="JSON lines to add to, and to read what was found before from")
    parser.add_argument("--quick", action="store_true", help="one sweep, no goal; with a spec of a tiny model")
    add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
