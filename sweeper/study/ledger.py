"""The ledger: our own rows of one study, and the outbox that trackers are fed from.

Purpose: everything that Optuna has no place for. What happens is one transaction, with Optuna's side of it (`store.py`) inside:

    gateway                one transaction of the database
    ───────                ───────────────────────────────────────────────────────────
    something happens ──>  event row; Optuna's trial, value or state; what follows from it
    the outbox reads  <──  events in order

A crash leaves all of it or nothing. Trackers are told later, from the events.
One process writes, from any of its threads: a lock keeps event numbers in the order of their commits. Rows come in lists, since a
statement costs more than its rows.
Does not know Optuna or what a decision means. Cost: a transaction is about 0.3 ms on SQLite, 1 ms on a near PostgreSQL.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
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
    insert_all,
    now_ms,
    update_all,
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


@dataclass(frozen=True)
class NewEvent:
    """An event to be written. `sure`: its key is known to be new; else one whose key is known already changes nothing."""

    kind: str
    trial: int | None
    payload: Mapping[str, object]
    key: str
    sure: bool = True


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

    def sent(self, tracker: str, upto: int, runs: Mapping[int, str] = MappingProxyType({})) -> None:
        """Notes that `tracker` has seen all events up to and including number `upto`, and which runs it has for trials."""
        place = {"study": self.study, "tracker": tracker}
        with self.begin() as connection:
            upsert(connection, TRACKERS, {**place, "seq": upto})
            if runs:
                mine = (TRACKER_RUNS.c.study == self.study, TRACKER_RUNS.c.tracker == tracker)
                connection.execute(sa.delete(TRACKER_RUNS).where(*mine, TRACKER_RUNS.c.number.in_(runs)))
                insert_all(connection, TRACKER_RUNS, [{**place, "number": trial, "run": run} for trial, run in runs.items()])

    def tracker_run(self, tracker: str, trial: int | None) -> str | None:
        """The tracker's run id of a trial (None: of the sweep), if it has one."""
        where = (TRACKER_RUNS.c.study == self.study, TRACKER_RUNS.c.tracker == tracker, TRACKER_RUNS.c.number == _run_number(trial))
        with self.begin() as connection:
            return connection.execute(sa.select(TRACKER_RUNS.c.run).where(*where)).scalar()

    def tracker_runs(self, tracker: str) -> dict[int, str]:
        """The tracker's run ids of all trials that it has runs for."""
        mine = (TRACKER_RUNS.c.study == self.study, TRACKER_RUNS.c.tracker == tracker, TRACKER_RUNS.c.number != _SWEEP_RUN)
        with self.begin() as connection:
            rows = connection.execute(sa.select(TRACKER_RUNS.c.number, TRACKER_RUNS.c.run).where(*mine))
            return {row.number: row.run for row in rows}

    def set_tracker_run(self, tracker: str, trial: int | None, run: str) -> None:
        """Notes the tracker's run id of a trial (None: of the sweep)."""
        with self.begin() as connection:
            upsert(connection, TRACKER_RUNS, {"study": self.study, "tracker": tracker, "number": _run_number(trial), "run": run})

    # Events of the gateway, within its transactions.

    def write_event(self, connection: sa.Connection, kind: str, trial: int | None, payload: Mapping[str, object], key: str) -> None:
        """Writes an event, unless its key is known already."""
        self.write_events(connection, [NewEvent(kind, trial, payload, key, sure=False)])

    def write_events(self, connection: sa.Connection, events: Sequence[NewEvent]) -> None:
        """Writes events in their order."""
        doubtful = [event.key for event in events if not event.sure]
        known: set[str] = set()
        if doubtful:
            query = sa.select(EVENTS.c.key).where(EVENTS.c.study == self.study, EVENTS.c.key.in_(doubtful))
            known = set(connection.execute(query).scalars())
        rows = []
        for event in events:
            if event.sure or event.key not in known:
                row = {"study": self.study, "key": event.key, "kind": event.kind, "number": event.trial, "done": True}
                rows.append({**row, "payload": json.dumps(event.payload, default=str)})
                known.add(event.key)
        insert_all(connection, EVENTS, rows, "time_ms")

    # Reports and decisions.

    def write_reports(self, connection: sa.Connection, reports: Sequence[tuple[Report, float | None]]) -> None:
        """Stores evaluations with all their metrics, each with the objective's first metric, None where there is none."""
        rows: list[dict[str, object]] = []
        metrics: list[dict[str, object]] = []
        for report, value in reports:
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
            rows.append(row)
            metrics += [{**place, "name": name, "value": number_or_null(value)} for name, value in sorted(report.metrics.items())]
        insert_all(connection, REPORTS, rows)
        insert_all(connection, METRICS, metrics)

    def write_checkpoints(self, connection: sa.Connection, reports: Sequence[Report]) -> None:
        """Notes the checkpoints that reports name; of two with one name the later."""
        rows = {(report.trial, report.checkpoint): self._checkpoint(report) for report in reports}
        if not rows:
            return
        query = sa.select(CHECKPOINTS.c.number, CHECKPOINTS.c.name).where(CHECKPOINTS.c.study == self.study)
        found = connection.execute(query.where(CHECKPOINTS.c.number.in_({number for number, _ in rows})))
        known = {(number, name) for number, name in found}
        update_all(connection, CHECKPOINTS, [row for place, row in rows.items() if place in known])
        insert_all(connection, CHECKPOINTS, [row for place, row in rows.items() if place not in known])

    def _checkpoint(self, report: Report) -> dict[str, object]:
        row = {"study": self.study, "number": report.trial, "name": report.checkpoint, "attempt": report.attempt}
        return {**row, "nominal": report.nominal, "examples": report.examples, "time_ms": report.time_ms}

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

    def write_decisions(self, connection: sa.Connection, decisions: Sequence[tuple[Report, Decision]]) -> None:
        """Stores decisions with their evidence."""
        insert_all(connection, DECISIONS, [self._decision(report, decision) for report, decision in decisions], "time_ms")

    def _decision(self, report: Report, decision: Decision) -> dict[str, object]:
        evidence = decision.evidence
        compared = evidence.get("compared")
        return {
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


def decision_event(report: Report, decision: Decision) -> NewEvent:
    """A decision as an event."""
    # Who was compared with grows with the study; it is kept once, with the decision.
    told = {"action": str(decision.action), "rung": report.nominal, "reason": decision.reason}
    return NewEvent("decision", report.trial, told, f"decision:{report.trial}:{report.attempt}:{report.nominal}")


def number_or_null(value: object) -> float | None:
    """A float as it is stored: None for what is no number."""
    return float(value) if isinstance(value, int | float) and not math.isnan(value) else None


def _run_number(trial: int | None) -> int:
    return _SWEEP_RUN if trial is None else trial


def _event(row: sa.Row[Any]) -> EventRow:
    return EventRow(row.seq, row.kind, row.number, json.loads(row.payload), row.time_ms, row.key)
