"""The ledger: our own rows of one study, and the outbox that trackers are fed from.

Purpose: everything that Optuna has no place for. What happens is one transaction, with Optuna's side of it (`store.py`) inside:

    gateway                one transaction of the database
    ───────                ───────────────────────────────────────────────────────────
    something happens ──>  event row; Optuna's trial, value or state; what follows from it
    the outbox reads  <──  events in order

A crash leaves all of it or nothing. Trackers are told later, from the events.
One process writes, from any of its threads: a lock keeps event numbers in the order of their commits.
Does not know Optuna or what a decision means. Cost: a transaction is about 0.3 ms on SQLite, 1 ms on a near PostgreSQL.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from sweeper.records import Action, Decision, Report
from sweeper.study.tables import (
    CHANGES,
    CHECKPOINTS,
    DECISIONS,
    EVENTS,
    METRICS,
    REPORTS,
    SWEEPS,
    TERMS,
    TRACKER_RUNS,
    TRACKERS,
    insert,
    now_ms,
    upsert,
)

_SWEEP_RUN = -1


@dataclass(frozen=True)
class EventRow:
    """Something that happened. `id` rises; `kind` is one of sweep_started, engines, trial_started, report, decision, trial_ended,
    winner, sweep_ended."""

    id: int
    kind: str
    trial: int | None
    payload: Mapping[str, Any]
    time_ms: int
    key: str = ""


class Ledger:
    """Reads and writes one study's rows. Usable from several threads of the driver; raises FencedError once taken over."""

    def __init__(self, engine: sa.Engine, study: str) -> None:
        self._engine = engine
        self.study = study
        self.lock = threading.RLock()

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """One transaction."""
        with self.lock, self._engine.begin() as connection:
            yield connection

    # The outbox.

    def add_event(self, kind: str, trial: int | None, payload: Mapping[str, object], key: str) -> None:
        """Notes that something happened that Optuna need not know. An event whose `key` is known already changes nothing."""
        with self.begin() as connection:
            self.write_event(connection, kind, trial, payload, key)

    def pending(self, tracker: str, limit: int = 200) -> list[EventRow]:
        """Events that `tracker` has not seen, in order; at most `limit`."""
        with self.begin() as connection:
            seen = connection.execute(sa.select(TRACKERS.c.seq).where(self._tracker(tracker))).scalar()
            query = sa.select(EVENTS).where(EVENTS.c.study == self.study, EVENTS.c.seq > (seen or 0))
            rows = connection.execute(query.order_by(EVENTS.c.seq).limit(limit)).all()
        return [_event(row) for row in rows]  # outside, so that the driver does not wait for it

    def sent(self, tracker: str, upto: int) -> None:
        """Notes that `tracker` has seen all events up to and including number `upto`."""
        with self.begin() as connection:
            upsert(connection, TRACKERS, {"study": self.study, "tracker": tracker, "seq": upto})

    def tracker_run(self, tracker: str, trial: int | None) -> str | None:
        """The tracker's run id of a trial (None: of the sweep), if it has one."""
        where = (TRACKER_RUNS.c.study == self.study, TRACKER_RUNS.c.tracker == tracker, TRACKER_RUNS.c.number == _run_number(trial))
        with self.begin() as connection:
            return connection.execute(sa.select(TRACKER_RUNS.c.run).where(*where)).scalar()

    def set_tracker_run(self, tracker: str, trial: int | None, run: str) -> None:
        """Notes the tracker's run id of a trial (None: of the sweep)."""
        with self.begin() as connection:
            upsert(connection, TRACKER_RUNS, {"study": self.study, "tracker": tracker, "number": _run_number(trial), "run": run})

    # Events of the gateway, within its transactions.

    def write_event(self, connection: sa.Connection, kind: str, trial: int | None, payload: Mapping[str, object], key: str) -> bool:
        """Writes an event; False if its key is known already."""
        if connection.execute(sa.select(EVENTS.c.seq).where(EVENTS.c.study == self.study, EVENTS.c.key == key)).first():
            return False
        self.insert_event(connection, kind, trial, payload, key)
        return True

    def insert_event(
        self, connection: sa.Connection, kind: str, trial: int | None, payload: Mapping[str, object], key: str
    ) -> None:
        """Writes an event whose key is known to be new."""
        row = {"study": self.study, "key": key, "kind": kind, "number": trial, "done": True}
        insert(connection, EVENTS, {**row, "payload": json.dumps(payload, default=str)}, "time_ms")

    # Reports and decisions.

    def write_report(self, connection: sa.Connection, report: Report, value: float | None) -> None:
        """Stores an evaluation with all its metrics; `value` is the objective's first metric, None where there is none."""
        place = {"study": self.study, "number": report.trial, "attempt": report.attempt, "nominal": report.nominal}
        row = {
            **place,
            "kind": str(report.kind),
            "examples": report.examples,
            "step": report.step,
            "time_ms": report.time_ms,
            "value": number_or_null(value),
            "outcomes": report.outcomes,
            "checkpoint": report.checkpoint,
            "rows_read": report.rows,
            "tokens": report.tokens,
            "train_seconds": report.train_seconds,
            "evaluate_seconds": report.evaluate_seconds,
            "worker": report.worker,
        }
        insert(connection, REPORTS, row)
        rows = [{**place, "name": name, "value": number_or_null(value)} for name, value in sorted(report.metrics.items())]
        if rows:
            connection.execute(sa.insert(METRICS), rows)

    def write_checkpoint(self, connection: sa.Connection, report: Report) -> None:
        """Notes the checkpoint that a report names."""
        row = {"study": self.study, "number": report.trial, "name": report.checkpoint, "attempt": report.attempt}
        time = {"nominal": report.nominal, "examples": report.examples, "time_ms": report.time_ms}
        upsert(connection, CHECKPOINTS, {**row, **time})

    def reported(self) -> set[tuple[int, int, int]]:
        """(trial, attempt, nominal) of every evaluation that is stored."""
        query = sa.select(REPORTS.c.number, REPORTS.c.attempt, REPORTS.c.nominal).where(REPORTS.c.study == self.study)
        with self.begin() as connection:
            return {(row.number, row.attempt, row.nominal) for row in connection.execute(query)}

    def curves(self) -> dict[int, dict[int, float]]:
        """Objective by trial and nominal examples: of the first attempt that got there, as Optuna keeps it."""
        query = sa.select(REPORTS.c.number, REPORTS.c.nominal, REPORTS.c.value)
        found: dict[int, dict[int, float]] = {}
        with self.begin() as connection:
            for row in connection.execute(query.where(REPORTS.c.study == self.study).order_by(REPORTS.c.attempt)):
                if row.value is not None:
                    found.setdefault(row.number, {}).setdefault(row.nominal, row.value)
        return found

    def write_decision(self, connection: sa.Connection, report: Report, decision: Decision) -> None:
        """Stores a decision with its evidence, and puts it in the outbox."""
        evidence = decision.evidence
        # Who was compared with grows with the study; it is kept once, below.
        told = {"action": str(decision.action), "rung": report.nominal, "reason": decision.reason}
        key = f"decision:{report.trial}:{report.attempt}:{report.nominal}"
        self.insert_event(connection, "decision", report.trial, told, key)
        compared = evidence.get("compared")
        row = {
            "study": self.study,
            "number": report.trial,
            "attempt": report.attempt,
            "nominal": report.nominal,
            "action": str(decision.action),
            "reason": decision.reason,
            "pruner": str(evidence.get("pruner") or ""),
            "value": number_or_null(evidence.get("value")),
            "cutoff": number_or_null(evidence.get("cutoff")),
            "rank": evidence.get("rank"),
            "compared": len(compared) if isinstance(compared, list) else 0,
            "evidence": json.dumps(dict(evidence), default=str),
        }
        insert(connection, DECISIONS, row, "time_ms")

    def last_decision(self, trial: int, attempt: int, nominal: int | None = None) -> Decision | None:
        """The decision on an evaluation of an attempt; without `nominal` the attempt's last one."""
        where = (DECISIONS.c.study == self.study, DECISIONS.c.number == trial, DECISIONS.c.attempt == attempt)
        query = sa.select(DECISIONS).where(*where)
        if nominal is not None:
            query = query.where(DECISIONS.c.nominal == nominal)
        with self.begin() as connection:
            row = connection.execute(query.order_by(DECISIONS.c.nominal.desc())).first()
        return None if row is None else Decision(trial, Action(row.action), row.reason, json.loads(row.evidence))

    # The sweep.

    def seconds_driven(self) -> float:
        """Seconds that earlier drivers spent on the study, as far as their heartbeats tell."""
        query = sa.select(sa.func.sum(sa.func.coalesce(TERMS.c.ended_ms, TERMS.c.beat_ms) - TERMS.c.started_ms))
        with self.begin() as connection:
            return float(connection.execute(query.where(TERMS.c.study == self.study)).scalar() or 0) / 1000

    def set_status(self, status: str) -> None:
        """`running`, `interrupted` or `finished`; the latter two with the time."""
        with self.begin() as connection:
            ended = None if status == "running" else now_ms(connection)
            connection.execute(sa.update(SWEEPS).where(SWEEPS.c.study == self.study).values(status=status, ended_ms=ended))

    def write_changes(self, connection: sa.Connection, term: int, changes: Mapping[str, tuple[object, object]]) -> None:
        """What of the plan differs from the run before, a row each."""
        for name, (new, old) in changes.items():
            row = {"study": self.study, "term": term, "time_ms": now_ms(connection), "field": name}
            connection.execute(sa.insert(CHANGES).values(**row, old=json.dumps(old), new=json.dumps(new)))

    def _tracker(self, tracker: str) -> sa.ColumnElement[bool]:
        return sa.and_(TRACKERS.c.study == self.study, TRACKERS.c.tracker == tracker)


def report_payload(report: Report) -> dict[str, object]:
    """A report's fields as an event's payload."""
    return {**{name: getattr(report, name) for name in Report.__dataclass_fields__}, "metrics": dict(report.metrics)}


def number_or_null(value: object) -> float | None:
    """A float as it is stored: None for what is no number."""
    return float(value) if isinstance(value, int | float) and not math.isnan(value) else None


def _run_number(trial: int | None) -> int:
    return _SWEEP_RUN if trial is None else trial


def _event(row: sa.Row[Any]) -> EventRow:
    return EventRow(row.seq, row.kind, row.number, json.loads(row.payload), row.time_ms, row.key)
