"""Many simulated sweeps: what to expect of a sweep, with an 80 % interval on each number.

Each sweep has its own curves, its own configurations where those are not known, and its own pace: log-normal around the measured
one with the Speed's `spread`. The same seed gives the same forecast.
Does not know where the speed comes from. Cost: 10 ms a simulated sweep, at most `seconds` in all.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from sweeper.records import TrialState
from sweeper.sweep.forecast.simulate import Simulated, World, simulate

RUNS = 300
FEWEST_RUNS = 20
LOW, HIGH = 0.1, 0.9
"""The ends of an 80 % interval."""


@dataclass(frozen=True)
class Range:
    """A number that is not known: its median, and an interval that should hold it four times in five."""

    low: float
    mid: float
    high: float

    def shifted(self, by: float) -> Range:
        """The range of the number and `by` more; never below 0."""
        return Range(*(max(0.0, value + by) for value in (self.low, self.mid, self.high)))

    def scaled(self, by: float) -> Range:
        """The range of `by` times the number."""
        return Range(self.low * by, self.mid * by, self.high * by)

    def holds(self, truth: float) -> bool:
        """Whether the interval contains `truth`."""
        return self.low <= truth <= self.high


@dataclass(frozen=True)
class Forecast:
    """What is to come: `seconds` from now to the end, device hours and trials still to be spent and ended."""

    seconds: Range
    device_hours: Range
    started: Range  # trials of the study in all, at the end
    complete: Range
    pruned: Range
    failed: Range
    waiting: Range  # those that a budget leaves unfinished
    drained: float  # share of the simulated sweeps that a budget ended
    runs: int

    def plain(self) -> dict[str, object]:
        """As JSON values."""
        return asdict(self)


def forecast(world: World, *, runs: int = RUNS, seconds: float = 8.0, seed: int = 0) -> Forecast:
    """Simulates up to `runs` sweeps, fewer where that takes longer than `seconds`."""
    chance = random.Random(f"{seed}/{world.plan.identity}")
    until = time.monotonic() + seconds
    found: list[Simulated] = []
    while len(found) < runs and (len(found) < FEWEST_RUNS or time.monotonic() < until):
        pace = math.exp(chance.gauss(0, world.speed.spread)) if world.speed.spread else 1.0
        found.append(simulate(world, chance, pace))
    count = world.device.count / 3600

    def trials(state: TrialState) -> Range:
        return spread(found, lambda one: float(one.states.get(state, 0)))

    return Forecast(
        seconds=spread(found, lambda one: one.seconds),
        device_hours=spread(found, lambda one: one.device_seconds * count),
        started=spread(found, lambda one: float(one.started)),
        complete=trials(TrialState.COMPLETE),
        pruned=trials(TrialState.PRUNED),
        failed=trials(TrialState.FAIL),
        waiting=trials(TrialState.WAITING),
        drained=sum(one.drained for one in found) / len(found),
        runs=len(found),
    )


def spread(found: Sequence[Simulated], of: Callable[[Simulated], float]) -> Range:
    """Median and 80 % interval of a number over simulated sweeps."""
    values = sorted(of(one) for one in found)
    return Range(*(_quantile(values, share) for share in (LOW, 0.5, HIGH)))


def read_range(raw: object) -> Range | None:
    """A Range from what `plain` gave, or None where it is none."""
    if not isinstance(raw, Mapping):
        return None
    try:
        return Range(float(raw["low"]), float(raw["mid"]), float(raw["high"]))
    except (KeyError, TypeError, ValueError):
        return None


def _quantile(values: Sequence[float], share: float) -> float:
    """Linear between the sorted `values`."""
    place = share * (len(values) - 1)
    below = math.floor(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (place - below)
