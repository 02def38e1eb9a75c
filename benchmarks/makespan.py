"""How long a whole sweep takes: the same eight configurations to their end, by Sweeper and by a plain script.

    python -m benchmarks.makespan [--sides packed:fp32 plain:fp32] [--rows 144,432] [--keep FILE] [--json FILE]

A side is KIND:DTYPE. `plain` is `plain_tune` (Ray Tune, HF Trainer, PEFT) in its better arrangement of the cores, with dtype fp32
or bf16 (the Trainer's own switch); packed, tune and local are Sweeper's executors, with dtype fp32, bf16 or auto. All read the same
rows at the same evaluation clock: every 48 examples 32 validation rows, 64 at the end; nothing is pruned or tracked. A run is a
whole command in a process of its own, measured from outside, with model and token files in place; two sizes tell its start-up (at
no row) from its time per row. Final losses of Sweeper's executors are compared trial by trial.
Runs that take long can be done in parts: each run is added to the file `--keep` as it ends, and all that are in it are shown.
Does not know how a trial trains. Cost: 40 minutes on two cores with all sides and sizes, once; `--quick` with a tiny model and the
side local:fp32 half a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import Goal, Measurement, add_output, at_least, at_most, finish, median, numbers
from benchmarks.pool import Arrangement, arrangements, parse_arrangement

ROOT = Path(__file__).parents[1]
SPEC = ROOT / "search_spaces" / "demo.yaml"
SIDES = ("plain:fp32", "tune:fp32", "packed:fp32", "packed:auto", "plain:bf16")
KINDS = {"plain": ("fp32", "bf16"), "packed": ("fp32", "bf16", "auto"), "tune": ("fp32", "bf16", "auto"), "local": ("fp32",)}
ROWS = (144, 432)
QUICK_ROWS = (48,)
EVALUATION = {"every": 48, "rows": 32, "share": 1.8}
VALIDATION = 64
TOLERANCE = 1e-3
CONFIGURATIONS: tuple[dict[str, float], ...] = tuple(
    {"learning_rate": rate, "batch_size": batch, "weight_decay": decay, "dropout": dropout}
    for rate, batch, decay, dropout in (
        (2e-4, 8, 0.0, 0.0),  # the default, trial 0
        (1e-3, 4, 0.01, 0.0),
        (5e-4, 4, 0.0, 0.1),
        (1e-4, 8, 0.1, 0.0),
        (2e-3, 16, 0.01, 0.1),
        (5e-4, 16, 0.0, 0.2),
        (1e-3, 32, 0.01, 0.0),
        (2e-3, 32, 0.1, 0.05),
    )
)
_SWEEPER = "from sweeper.cli import command; command()"


@dataclass(frozen=True)
class Run:
    """One whole command. Seconds of training and evaluation are sums over trials, as each side counts them itself."""

    side: str
    rows: int
    wall: float
    train_seconds: float
    evaluate_seconds: float
    arrangement: str = ""
    dtype: str = ""  # what auto chose
    losses: dict[str, float] = field(default_factory=dict)  # final validation loss by trial


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures; returns the exit code."""
    options = _parser().parse_args(arguments)
    trials = 4 if options.quick else len(CONFIGURATIONS)
    options.rows = options.rows or list(QUICK_ROWS if options.quick else ROWS)
    runs = [Run(**json.loads(line)) for line in _lines(options.keep)]
    with tempfile.TemporaryDirectory(prefix="makespan-") as scratch:
        place = _Place(options.spec, options.home or Path(scratch) / "home", Path(scratch), trials, options.arrangement or [])
        if options.repeats:
            place.prepare(options.rows)
        for repeat in range(options.repeats):
            for rows in options.rows:
                for side in options.sides[:: 1 if repeat % 2 == 0 else -1]:
                    runs += _kept(place.run(side, rows), options.keep)
    if not runs:
        print("nothing was run: --repeats 0 shows what --keep FILE holds", file=sys.stderr)
        return 2
    goals = [] if options.quick else _goals(runs)
    return finish(Measurement("makespan", _rows(runs, trials), goals), options.json)


@dataclass(frozen=True)
class _Place:
    """Where runs happen: a spec to begin with, a home with model and tokens, and a folder for files."""

    spec: Path
    home: Path
    scratch: Path
    trials: int
    ways: Sequence[Arrangement]

    def prepare(self, sizes: Sequence[int]) -> None:
        """Converts the model and tokenises the rows, so that no run pays for it."""
        from sweeper.spec.load import load_spec
        from sweeper.sweep.home import Home
        from sweeper.sweep.prepare import prepare

        for rows in sizes:
            prepare(load_spec(self._write("local:fp32", rows), []), Home.at(self.home))

    def run(self, side: str, rows: int) -> list[Run]:
        """One side's run; a plain one in each arrangement."""
        kind, _, dtype = side.partition(":")
        if kind == "plain":
            ways = self.ways or arrangements(_gpus())
            return [self._plain(side, rows, way, dtype) for way in ways]
        return [self._ours(side, rows)]

    def _plain(self, side: str, rows: int, way: Arrangement, dtype: str) -> Run:
        points, found = self.scratch / "points.json", self.scratch / "plain.json"
        points.write_text(json.dumps(CONFIGURATIONS[: self.trials]))
        command = [sys.executable, "-m", "benchmarks.plain_tune", "--spec", str(self._write(side, rows)), "--home", str(self.home)]
        command += ["--configurations", str(points), "--arrangement", str(way), "--json", str(found)]
        wall = _timed([*command, *(["--bf16"] if dtype == "bf16" else [])])
        row = json.loads(found.read_text())["rows"][0]
        return Run(side, rows, wall, float(row["train_seconds"]), float(row["evaluate_seconds"]), str(way), dtype)

    def _ours(self, side: str, rows: int) -> Run:
        from sweeper.study.read import StudyReader
        from sweeper.sweep.home import Home

        file = self._write(side, rows)
        wall = _timed([sys.executable, "-c", _SWEEPER, "run", str(file), "--home", str(self.home)])
        reader = StudyReader(Home.at(self.home).default_storage)
        found, plan = reader.trials(file.stem), reader.plan(file.stem)
        resolved = plan.spec.get("resolved")
        return Run(
            side,
            rows,
            wall,
            sum(trial.train_seconds for trial in found),
            sum(trial.evaluate_seconds for trial in found),
            dtype=str(resolved.get("dtype")) if isinstance(resolved, Mapping) else "",
            losses={str(trial.number): float(trial.metrics["validation/loss"]) for trial in found},
        )

    def _write(self, side: str, rows: int) -> Path:
        """The spec of one run, under a name that no study has yet."""
        import yaml

        kind, _, dtype = side.partition(":")
        spec: dict[str, Any] = yaml.safe_load(self.spec.read_text())
        default, *others = CONFIGURATIONS[: self.trials]
        spec["name"] = f"makespan-{kind}-{dtype}-{rows}-{time.time_ns() // 1_000_000}"
        spec["data"] = {**spec["data"], "limit": {"train": rows, "validation": VALIDATION}}
        plain_bf16 = kind == "plain" and dtype == "bf16"  # the switch works on weights in fp32
        spec["training"] = {**spec.get("training", {}), **default, "epochs": 1, "dtype": "fp32" if plain_bf16 else dtype}
        spec["training"].pop("examples", None)
        spec["space"] = {
            "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
            "batch_size": {"low": 4, "high": 32, "log": True},
            "weight_decay": {"low": 0.0, "high": 0.1},
            "dropout": {"low": 0.0, "high": 0.3},
        }
        spec["search"] = {"trials": self.trials, "pruner": "none", "collapse": {"enabled": False}, "enqueue": others}
        spec["objective"], spec["evaluate"], spec["tracking"] = {"metric": "loss"}, EVALUATION, []
        spec["executor"] = {"kind": kind} if kind != "plain" else {}
        file = self.scratch / f"{spec['name']}.yaml"
        file.write_text(yaml.safe_dump(spec))
        return file


def _timed(command: Sequence[str]) -> float:
    """Seconds of a whole command. Raises RuntimeError with its last words if it fails."""
    began = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:5])} ended with {done.returncode}:\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")
    return took


def _gpus() -> int:
    import torch

    return int(torch.cuda.device_count())


def _lines(file: Path | None) -> list[str]:
    return file.read_text().splitlines() if file is not None and file.exists() else []


def _kept(found: list[Run], file: Path | None) -> list[Run]:
    for run in found:
        print(f"{run.side} {run.rows} rows {run.arrangement}: {run.wall:.1f} s", flush=True)
        if file is not None:
            with file.open("a") as out:
                out.write(json.dumps(asdict(run)) + "\n")
    return found


def wall_times(runs: Sequence[Run]) -> dict[str, dict[int, float]]:
    """Median wall seconds by side and rows; of the yardstick's arrangements the better one at each size counts."""
    found: dict[str, dict[int, float]] = {}
    for side, rows in dict.fromkeys((run.side, run.rows) for run in runs):
        mine = [run for run in runs if (run.side, run.rows) == (side, rows)]
        ways = {run.arrangement for run in mine}
        found.setdefault(side, {})[rows] = min(median([run.wall for run in mine if run.arrangement == way]) for way in ways)
    return found


def line(times: Mapping[int, float], trials: int) -> tuple[float, float] | None:
    """Start-up in seconds and milliseconds a row, from the smallest and the largest size; None where there is one size."""
    if len(times) < 2:
        return None
    low, high = min(times), max(times)
    slope = (times[high] - times[low]) / (trials * (high - low))
    return times[low] - slope * trials * low, 1e3 * slope


def _rows(runs: Sequence[Run], trials: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for side, times in wall_times(runs).items():
        fitted = line(times, trials)
        for size, wall in sorted(times.items()):
            mine = [run for run in runs if (run.side, run.rows) == (side, size)]
            best = min(mine, key=lambda run: abs(run.wall - wall))
            rows.append(
                {
                    "side": side,
                    "dtype": best.dtype,
                    "way": best.arrangement or None,
                    "trials": trials,
                    "rows": size,
                    "wall": wall,
                    "train_seconds": best.train_seconds,
                    "evaluate_seconds": best.evaluate_seconds,
                    "start_seconds": fitted[0] if fitted else None,
                    "ms_a_row": fitted[1] if fitted else None,
                    "runs": len(mine),
                }
            )
    return rows


def _goals(runs: Sequence[Run]) -> list[Goal]:
    times, trials = wall_times(runs), len(CONFIGURATIONS)
    goals: list[Goal] = []
    auto = {run.dtype for run in runs if run.side == "packed:auto"}
    pairs = [("plain:fp32", "packed:fp32", 2.0), ("tune:fp32", "packed:fp32", 1.0)]
    pairs += [("plain:bf16", "packed:bf16", 2.0)]
    pairs += [("plain:fp32", "packed:auto", 3.5), ("plain:bf16", "packed:auto", 2.0)] if auto == {"bf16"} else []
    for other, ours, wanted in pairs:
        theirs, mine = times.get(other, {}), times.get(ours, {})
        for size in sorted(set(theirs) & set(mine)):
            goals.append(at_least(f"{other} over {ours}, wall time at {size} rows", wanted, theirs[size] / mine[size], "x"))
        slopes = line(theirs, trials), line(mine, trials)
        if slopes[0] and slopes[1]:
            goals.append(at_least(f"{other} over {ours}, time per row", wanted, slopes[0][1] / slopes[1][1], "x"))
    gap = loss_gap(runs)
    return (
        [*goals, at_most("relative difference of final losses, packed and tune in fp32", TOLERANCE, gap)]
        if gap is not None
        else goals
    )


def loss_gap(runs: Sequence[Run]) -> float | None:
    """The largest relative difference of a trial's final loss between packed and tune in fp32, at the same rows."""
    gaps = [
        abs(a.losses[number] - b.losses[number]) / abs(b.losses[number])
        for a in runs
        for b in runs
        if a.side == "packed:fp32" and b.side == "tune:fp32" and a.rows == b.rows
        for number in set(a.losses) & set(b.losses)
    ]
    return max(gaps, default=None)


def _side(text: str) -> str:
    kind, _, dtype = text.partition(":")
    if dtype not in KINDS.get(kind, ()):
        allowed = ", ".join(f"{k}:{'|'.join(v)}" for k, v in KINDS.items())
        raise argparse.ArgumentTypeError(f"{text!r} is not a side; there are {allowed}")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.makespan", description="The same configurations, whole, by each side."
    )
    parser.add_argument("--spec", type=Path, default=SPEC, help="model and rows are taken from it (default: the demo's)")
    parser.add_argument("--sides", nargs="+", type=_side, default=list(SIDES), metavar="KIND:DTYPE")
    parser.add_argument("--rows", type=numbers, help="training rows of a trial (default: 144,432; with --quick 48)")
    parser.add_argument("--arrangement", action="append", type=parse_arrangement, metavar="PxT", help="of plain (default: both)")
    parser.add_argument("--repeats", type=int, default=1, help="0: only show what --keep holds")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="JSON lines: runs of earlier calls are read, new ones added")
    parser.add_argument("--home", type=Path, help="sweep home for model, tokens and studies (default: a temporary one)")
    parser.add_argument("--quick", action="store_true", help="four trials of 48 rows, no goals")
    add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
