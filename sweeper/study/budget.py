"""What a sweep has used of its `search.budget`: driver time, device hours and money.

A device hour is an hour in which one engine trained or evaluated, times the GPUs that the engine holds; where it has no GPU, times
its cores. Start-up, and time in which an engine had no trial, count as driver time only. All attempts of all trials count,
those of earlier runs and of failed trials included.
Does not know what is done about it (the gateway drains), nor what a device is. Cost: one query at the start, then additions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from sweeper.records import Outcome, Report
from sweeper.spec.models import BudgetSpec
from sweeper.study.tables import RUNS
from sweeper.study.trials import Attempt


@dataclass(frozen=True)
class Device:
    """What one engine holds: `count` GPUs, or cores where it has no GPU; fractions where several engines share one."""

    count: float = 1.0
    unit: str = "GPU"


def read_spent(connection: sa.Connection, study: str) -> dict[Attempt, float]:
    """Seconds that each attempt has trained and evaluated, as far as it told."""
    columns = (RUNS.c.number, RUNS.c.attempt, RUNS.c.train_seconds, RUNS.c.evaluate_seconds)
    rows = connection.execute(sa.select(*columns).where(RUNS.c.study == study))
    return {(row.number, row.attempt): row.train_seconds + row.evaluate_seconds for row in rows}


class Account:
    """The running sum of one study. `spent`: seconds of each attempt so far."""

    def __init__(self, budget: BudgetSpec, device: Device, spent: Mapping[Attempt, float]) -> None:
        self._budget = budget
        self._device = device
        self._spent = dict(spent)
        self._seconds = sum(self._spent.values())

    def note(self, number: int, attempt: int, cost: Report | Outcome) -> None:
        """What an attempt has cost until now; an ending that knows no cost changes nothing."""
        seconds = cost.train_seconds + cost.evaluate_seconds
        known = self._spent.get((number, attempt), 0.0)
        if seconds > known:
            self._spent[number, attempt] = seconds
            self._seconds += seconds - known

    def hours(self) -> float:
        """Device hours used."""
        return self._seconds * self._device.count / 3600

    def used_up(self, driven: float) -> str | None:
        """The first limit that is reached, in words; None while there is budget left. `driven`: seconds of driver time."""
        budget, hours, unit = self._budget, self.hours(), self._device.unit
        if budget.time is not None and driven >= float(budget.time):
            return f"{driven:.0f} of {float(budget.time):.0f} s of driver time are used (search.budget.time)"
        if budget.gpu_hours is not None and hours >= budget.gpu_hours:
            return f"{hours:.4g} of {budget.gpu_hours:g} {unit}-hours are used (search.budget.gpu_hours)"
        if budget.money is not None and budget.price is not None and hours * budget.price >= budget.money:
            spent = f"{hours * budget.price:.4g} of {budget.money:g}"
            return f"{spent} are spent at {budget.price:g} a {unit}-hour (search.budget.money)"
        return None
