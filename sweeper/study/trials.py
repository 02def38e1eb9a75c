"""One trial as the ledger keeps it: configuration, clocks, state and results, and its attempts.

Does not know Optuna or how a trial was drawn. Cost: a row read or written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa

from sweeper.records import Outcome, ParamValue, Report, TrialSpec, TrialState
from sweeper.study.tables import RUNS, TRIALS, insert, update

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


def write_trial(connection: sa.Connection, study: str, row: TrialRow, before: TrialRow | None) -> None:
    """Stores a trial; `before` is it as it is stored, None for a new one."""
    place = {"study": study, "number": row.number}
    if before is None:
        insert(connection, TRIALS, {**place, **{name: _stored(row, name) for name in row.__dataclass_fields__}})
        return
    changed = [name for name in row.__dataclass_fields__ if getattr(row, name) != getattr(before, name)]
    if changed:
        update(connection, TRIALS, {**place, **{name: _stored(row, name) for name in changed}})


def write_start(connection: sa.Connection, study: str, row: TrialRow, term: int) -> None:
    """Begins an attempt."""
    values = {
        "study": study,
        "number": row.number,
        "attempt": row.attempt,
        "term": term,
        "worker": "",
        "reason": "",
        "examples": 0,
        "tokens": 0,
        "train_seconds": 0.0,
        "evaluate_seconds": 0.0,
    }
    insert(connection, RUNS, values, "started_ms")


def write_usage(connection: sa.Connection, study: str, number: int, attempt: int, spent: Report | Outcome, *, ended: bool) -> None:
    """What an attempt has cost so far, or in the end. An ending that knows no cost leaves what the last report said."""
    values: dict[str, object] = {}
    timed: tuple[str, ...] = ()
    if spent.train_seconds or spent.tokens:
        values = {
            "examples": spent.examples,
            "tokens": spent.tokens,
            "train_seconds": spent.train_seconds,
            "evaluate_seconds": spent.evaluate_seconds,
        }
    if spent.worker:
        values["worker"] = spent.worker
    if ended and isinstance(spent, Outcome):
        values.update(ending=str(spent.ending), reason=spent.reason)
        timed = ("ended_ms",)
    if values:
        update(connection, RUNS, {"study": study, "number": number, "attempt": attempt, **values}, *timed)


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
