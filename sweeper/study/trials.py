"""One trial as the ledger keeps it: configuration, clocks, state and results, and its attempts.

Does not know Optuna or how a trial was drawn. Cost: a row read or written; many are written in
one statement for each set of columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from sweeper.records import Outcome, ParamValue, Report, TrialSpec, TrialState
from sweeper.study.tables import RUNS, TRIALS, insert_all, update_all

Attempt = tuple[int, int]
"""Number of a trial, and how often it was started before."""

_JSON = ("params", "drawn", "asked", "evaluations", "rungs", "objective", "metrics")


@dataclass(frozen=True)
class TrialRow:
    """A row of swp_trials. `nominal`, `examples` and `step` are of the last report; times are Unix milliseconds."""

    number: int
    state: TrialState
    source: str  # default, enqueued or sampler
    params: Mapping[str, ParamValue]
    drawn: Mapping[str, ParamValue]
    seed: int
    budget: int
    evaluations: tuple[int, ...]
    rungs: tuple[int, ...]
    asked: Mapping[str, object] = field(default_factory=dict)
    trial_id: int | None = None
    attempt: int = 0
    held_by: str | None = None
    held_until_ms: int | None = None
    checkpoint: str | None = None
    nominal: int = 0
    examples: int = 0
    step: int = 0
    reason: str = ""
    objective: tuple[float, ...] | None = None
    value: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    feasible: bool | None = None
    adapter: str | None = None
    outcomes: str | None = None
    finish_order: int | None = None
    created_ms: int = 0
    started_ms: int | None = None
    ended_ms: int | None = None

    def spec(self, study: str) -> TrialSpec:
        """What an executor is given."""
        return TrialSpec(
            study=study,
            number=self.number,
            params=dict(self.params),
            seed=self.seed,
            examples=self.budget,
            evaluations=self.evaluations,
            rungs=self.rungs,
            resume_from=self.checkpoint,
            attempt=self.attempt,
        )


def read_trials(connection: sa.Connection, study: str) -> list[TrialRow]:
    """All trials of a study by number."""
    rows = connection.execute(sa.select(TRIALS).where(TRIALS.c.study == study).order_by(TRIALS.c.number)).mappings()
    return [_row(row) for row in rows]


def write_trials(connection: sa.Connection, study: str, rows: Sequence[tuple[TrialRow | None, TrialRow]]) -> None:
    """Stores trials, each as it is stored now (None for a new one) and as it is to be."""
    new, changed = [], []
    for before, row in rows:
        place = {"study": study, "number": row.number}
        if before is None:
            new.append({**place, **{name: _stored(row, name) for name in row.__dataclass_fields__}})
            continue
        names = [name for name in row.__dataclass_fields__ if getattr(row, name) != getattr(before, name)]
        if names:
            changed.append({**place, **{name: _stored(row, name) for name in names}})
    insert_all(connection, TRIALS, new)
    update_all(connection, TRIALS, changed)


def write_starts(connection: sa.Connection, study: str, attempts: Iterable[Attempt], term: int) -> None:
    """Begins attempts."""
    blank = {"worker": "", "reason": "", "examples": 0, "tokens": 0, "train_seconds": 0.0, "evaluate_seconds": 0.0}
    rows = [{"study": study, "number": number, "attempt": attempt, "term": term, **blank} for number, attempt in attempts]
    insert_all(connection, RUNS, rows, "started_ms")


@dataclass
class Usage:
    """What attempts have cost so far, or in the end: what is to be changed in their rows."""

    running: dict[Attempt, dict[str, object]] = field(default_factory=dict)
    ended: dict[Attempt, dict[str, object]] = field(default_factory=dict)

    def note(self, attempt: Attempt, spent: Report | Outcome, *, ended: bool) -> None:
        """An ending that knows no cost leaves what the last report said."""
        values = self.running.pop(attempt, {})
        if spent.train_seconds or spent.tokens:
            values.update(
                examples=spent.examples,
                tokens=spent.tokens,
                train_seconds=spent.train_seconds,
                evaluate_seconds=spent.evaluate_seconds,
            )
        if spent.worker:
            values["worker"] = spent.worker
        if ended and isinstance(spent, Outcome):
            self.ended[attempt] = {**values, "ending": str(spent.ending), "reason": spent.reason}
        elif values:
            self.running[attempt] = values

    def write(self, connection: sa.Connection, study: str) -> None:
        """Stores it."""
        for rows, timed in ((self.running, ()), (self.ended, ("ended_ms",))):
            places = [{"study": study, "number": number, "attempt": attempt, **rows[number, attempt]} for number, attempt in rows]
            update_all(connection, RUNS, places, *timed)


def _stored(row: TrialRow, name: str) -> object:
    """A field as its column takes it."""
    value = getattr(row, name)
    if name == "state":
        return str(value)
    if name not in _JSON or value is None:
        return value
    return json.dumps(dict(value) if isinstance(value, Mapping) else value)


def _row(row: sa.RowMapping) -> TrialRow:
    values = {name: row[name] for name in TrialRow.__dataclass_fields__}
    for name in _JSON:
        values[name] = None if values[name] is None else json.loads(values[name])
    for name in ("evaluations", "rungs"):
        values[name] = tuple(values[name])
    if values["objective"] is not None:
        values["objective"] = tuple(values["objective"])
    return TrialRow(**{**values, "state": TrialState(row["state"])})
