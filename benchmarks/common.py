"""The one format of all benchmarks: rows for people and for machines, goals that are met or not, medians of interleaved runs.

    {"name": ..., "machine": {...}, "versions": {...}, "rows": [{...}], "goals": [{"what", "goal", "measured", "met"}]}

Does not know what is measured. Cost: nothing beside the measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from sweeper.engine.node import cores


@dataclass(frozen=True)
class Goal:
    """A claim with its measurement; `goal` is written as people say it, e.g. `at least 1.5x`."""

    what: str
    goal: str
    measured: str
    met: bool


@dataclass(frozen=True)
class Measurement:
    """What one benchmark found. Values of rows are plain JSON; every row has the same keys."""

    name: str
    rows: Sequence[Mapping[str, Any]]
    goals: Sequence[Goal] = ()
    machine: Mapping[str, Any] = field(default_factory=lambda: machine())
    versions: Mapping[str, str] = field(default_factory=lambda: versions())


def machine() -> dict[str, Any]:
    """What speed depends on here: processor, cores this process may use, memory, GPUs."""
    import torch

    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "system": platform.platform(),
    }


def versions(*more: str) -> dict[str, str]:
    """Versions of Python and of the packages that measurements depend on, and of `more`."""
    found = {"python": platform.python_version()}
    for name in ("sweeper", "torch", "transformers", "peft", "optuna", "ray", "numpy", *more):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def interleaved(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Runs every side `repeats` times in turns (A B A B ...) and returns what each returned.

    Turns spread a machine's slow minutes over both sides; the order is reversed every other turn, as the first one is often warmer.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        order = list(sides)[:: 1 if turn % 2 == 0 else -1]
        for name in order:
            found[name].append(sides[name]())
    return found


def median(values: Sequence[float]) -> float:
    """The middle value. Raises statistics.StatisticsError for no values."""
    return statistics.median(values)


def at_least(what: str, least: float, measured: float, unit: str = "") -> Goal:
    """The goal that `measured` reaches `least`."""
    return Goal(what, f"at least {least:g}{unit}", f"{measured:.3g}{unit}", measured >= least)


def at_most(what: str, most: float, measured: float, unit: str = "") -> Goal:
    """The goal that `measured` stays within `most`."""
    return Goal(what, f"at most {most:g}{unit}", f"{measured:.3g}{unit}", measured <= most)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned columns; numbers to the right."""
    if not rows:
        return "(no rows)"
    names = list(rows[0])
    cells = [[_shown(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    right = [isinstance(rows[0].get(name), int | float) for name in names]
    lines = [names, ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """The option that every benchmark has."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurement as JSON")


def numbers(text: str) -> list[int]:
    """`1,2,4`, for argparse."""
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers above 0, e.g. 1,2,4")
    return [int(part) for part in parts]


def finish(measured: Measurement, file: Path | None) -> int:
    """Prints the table, writes `file` if given, and returns the exit code: 0, or 1 if a goal was missed."""
    facts = measured.machine
    print(
        f"\n{measured.name}: {facts['processor']}, {facts['cores']} cores, {facts['memory_gb']} GB, GPUs: {facts['gpus'] or 'none'}"
    )
    print(table(measured.rows))
    for goal in measured.goals:
        print(f"{'met   ' if goal.met else 'MISSED'}  {goal.what}: {goal.measured} (goal: {goal.goal})")
    if file is not None:
        file.write_text(json.dumps(asdict(measured), indent=1) + "\n")
        print(f"written to {file}")
    return 0 if all(goal.met for goal in measured.goals) else 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_shown(item)}" for key, item in value.items())
    return "-" if value is None else str(value)
