"""Reading a study: needs no fence, works beside a running driver and on a copied database, and changes nothing.

Purpose: frozen views for people, reports and trackers. Reads our tables alone, so that it needs no import of Optuna's storage;
the gateway keeps both equal, and mends the newest trial after a crash.
Does not know how a trial is drawn or judged. Cost: a query or two; under 50 ms for 1,000 trials.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from sweeper.errors import ResourceError, StudyError, nearest
from sweeper.records import Action, ParamValue, ReportKind, TrialState
from sweeper.study.database import connect_to_read, parse, reached, sqlite_path
from sweeper.study.fence import read_holder
from sweeper.study.migrate import version
from sweeper.study.plan import StudyPlan
from sweeper.study.sweeps import read_plan
from sweeper.study.tables import DECISIONS, EVENTS, METRICS, REPORTS, RUNS, SWEEPS
from sweeper.study.trials import TrialRow, read_trials


@dataclass(frozen=True)
class TrialView:
    """One trial. Budgets and clocks are examples, times Unix milliseconds, `seconds` train and evaluate of all attempts.

    `value` is the first metric of the objective and `values` all of them, for a COMPLETE trial; `metrics` are those of that
    evaluation, or of the last one while there is no value. `feasible` says whether the constraints are met.
    """

    number: int
    state: TrialState
    params: Mapping[str, ParamValue]
    value: float | None
    values: tuple[float, ...] | None
    metrics: Mapping[str, float]
    nominal: int
    examples: int
    step: int
    budget: int
    evaluations: tuple[int, ...]
    rungs: tuple[int, ...]
    reason: str
    source: str
    seed: int
    attempts: int
    started_ms: int | None
    ended_ms: int | None
    seconds: float
    train_seconds: float
    evaluate_seconds: float
    tokens: int
    worker: str
    adapter: str | None
    checkpoint: str | None
    outcomes: str | None
    feasible: bool | None

    @property
    def queued(self) -> bool:
        """Whether it waits to be trained, for the first time or again."""
        return self.state is TrialState.WAITING


@dataclass(frozen=True)
class ReportView:
    """One evaluation of one attempt. A metric that was no number is NaN."""

    trial: int
    attempt: int
    kind: ReportKind
    nominal: int
    examples: int
    step: int
    time_ms: int
    metrics: Mapping[str, float]
    rows: int
    tokens: int
    train_seconds: float
    evaluate_seconds: float
    worker: str
    outcomes: str | None
    checkpoint: str | None


@dataclass(frozen=True)
class DecisionView:
    """Why a trial was stopped or kept at one evaluation."""

    trial: int
    attempt: int
    nominal: int
    action: Action
    reason: str
    pruner: str
    value: float | None
    cutoff: float | None
    rank: int | None
    evidence: Mapping[str, object]
    time_ms: int


@dataclass(frozen=True)
class DriverView:
    """The study's last driver. `alive` is a guess: its process on this host, its heartbeat elsewhere."""

    driver: str
    host: str
    pid: int
    term: int
    alive: bool
    heartbeat_ms: int
    started_ms: int
    ended_ms: int | None


@dataclass(frozen=True)
class SweepView:
    """A study's own row. `status`: running, interrupted (a dead driver's too) or finished."""

    study: str
    status: str
    identity: str
    started_ms: int
    ended_ms: int | None


class StudyReader:
    """Reads the studies of one database. Raises ResourceError if it is out of reach, StudyError for a name it does not hold."""

    def __init__(self, url: str) -> None:
        self._url = parse(url)
        self._engine = connect_to_read(self._url)

    @staticmethod
    def exists(url: str) -> bool:
        """Whether there is a study database at `url` that can be read. Creates nothing."""
        parsed = parse(url)
        path = sqlite_path(parsed)
        if path is not None and not path.is_file():
            return False
        try:
            return bool(StudyReader(url)._has_tables())
        except ResourceError:
            return False

    @classmethod
    def of(cls, url: str, study: str) -> StudyReader | None:
        """The reader of a database that has this study; None where it has not, or there is none. Creates nothing."""
        reader = cls(url) if cls.exists(url) else None
        return reader if reader is not None and study in reader.studies() else None

    def studies(self) -> list[str]:
        """Names of all studies, by age."""
        if not self._has_tables():
            return []
        with self._begin() as connection:
            return list(connection.execute(sa.select(SWEEPS.c.study).order_by(SWEEPS.c.created_ms, SWEEPS.c.study)).scalars())

    def plan(self, name: str) -> StudyPlan:
        """The plan of a study, as of its last run."""
        plan = None
        if self._has_tables():
            with self._begin() as connection:
                plan = read_plan(connection, name)
        if plan is None:
            names = self.studies()
            raise StudyError(f"there is no study {name!r}; " + (nearest(name, names) if names else "the database holds none"))
        return plan

    def sweep(self, name: str) -> SweepView:
        """Status and times of a study."""
        driver = self.driver(name)
        with self._begin() as connection:
            row = connection.execute(sa.select(SWEEPS).where(SWEEPS.c.study == name)).one()
        dead = row.status == "running" and (driver is None or not driver.alive)
        return SweepView(name, "interrupted" if dead else row.status, row.identity, row.created_ms, row.ended_ms)

    def driver(self, name: str) -> DriverView | None:
        """Who drives the study, or drove it last; None if nobody has."""
        self.plan(name)
        with self._begin() as connection:
            holder = read_holder(connection, name)
        if holder is None:
            return None
        return DriverView(
            driver=holder.driver,
            host=holder.host,
            pid=holder.pid,
            term=holder.term,
            alive=holder.is_alive(),
            heartbeat_ms=holder.beat_ms,
            started_ms=holder.started_ms,
            ended_ms=holder.ended_ms,
        )

    def trials(self, name: str) -> list[TrialView]:
        """All trials by number."""
        self.plan(name)
        with self._begin() as connection:
            rows = read_trials(connection, name)
            spent: dict[int, list[sa.Row[tuple[object, ...]]]] = {}
            for run in connection.execute(sa.select(RUNS).where(RUNS.c.study == name).order_by(RUNS.c.attempt)):
                spent.setdefault(run.number, []).append(run)
        return [_trial(row, spent.get(row.number, [])) for row in rows]

    def trial(self, name: str, number: int) -> TrialView:
        """One trial. Raises StudyError if there is none of this number."""
        trials = self.trials(name)
        for trial in trials:
            if trial.number == number:
                return trial
        there = f"it has trials 0 to {len(trials) - 1}" if trials else "it has none yet"
        raise StudyError(f"study {name!r} has no trial {number}; {there}")

    def reports(self, name: str, trial: int) -> list[ReportView]:
        """Evaluations of a trial by attempt and nominal examples."""
        self.trial(name, trial)
        order = (REPORTS.c.attempt, REPORTS.c.nominal)
        with self._begin() as connection:
            query = sa.select(REPORTS).where(REPORTS.c.study == name, REPORTS.c.number == trial)
            rows = connection.execute(query.order_by(*order)).all()
            metrics: dict[tuple[int, int], dict[str, float]] = {}
            for row in connection.execute(sa.select(METRICS).where(METRICS.c.study == name, METRICS.c.number == trial)):
                metrics.setdefault((row.attempt, row.nominal), {})[row.name] = float("nan") if row.value is None else row.value
        return [
            ReportView(
                trial=trial,
                attempt=row.attempt,
                kind=ReportKind(row.kind),
                nominal=row.nominal,
                examples=row.examples,
                step=row.step,
                time_ms=row.time_ms,
                metrics=metrics.get((row.attempt, row.nominal), {}),
                rows=row.rows_read,
                tokens=row.tokens,
                train_seconds=row.train_seconds,
                evaluate_seconds=row.evaluate_seconds,
                worker=row.worker,
                outcomes=row.outcomes,
                checkpoint=row.checkpoint,
            )
            for row in rows
        ]

    def decisions(self, name: str, trial: int | None = None) -> list[DecisionView]:
        """Decisions on a trial, or on all of them, in the order they were taken."""
        self.plan(name)
        query = sa.select(DECISIONS).where(DECISIONS.c.study == name)
        if trial is not None:
            query = query.where(DECISIONS.c.number == trial)
        with self._begin() as connection:
            rows = connection.execute(query.order_by(DECISIONS.c.time_ms, DECISIONS.c.number, DECISIONS.c.nominal)).all()
        return [
            DecisionView(
                trial=row.number,
                attempt=row.attempt,
                nominal=row.nominal,
                action=Action(row.action),
                reason=row.reason,
                pruner=row.pruner,
                value=row.value,
                cutoff=row.cutoff,
                rank=row.rank,
                evidence=json.loads(row.evidence),
                time_ms=row.time_ms,
            )
            for row in rows
        ]

    def events(self, name: str, kind: str) -> list[Mapping[str, object]]:
        """Payloads of a study's events of one kind, in order."""
        query = sa.select(EVENTS.c.payload).where(EVENTS.c.study == name, EVENTS.c.kind == kind).order_by(EVENTS.c.seq)
        with self._begin() as connection:
            return [json.loads(payload) for payload in connection.execute(query).scalars()]

    def best(self, name: str) -> TrialView | None:
        """The best COMPLETE trial that meets the constraints, by the first metric; of equal ones the earliest."""
        sign = _signs(self.plan(name))[0]
        complete = [trial for trial in self.trials(name) if _counts(trial)]
        return min(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number), default=None)

    def best_front(self, name: str) -> list[TrialView]:
        """COMPLETE trials within the constraints that no other beats in every metric of the objective (the Pareto front)."""
        signs = _signs(self.plan(name))
        complete = [trial for trial in self.trials(name) if _counts(trial)]
        points = {trial.number: [s * v for s, v in zip(signs, trial.values or (), strict=True)] for trial in complete}
        return [trial for trial in complete if not any(_dominates(other, points[trial.number]) for other in points.values())]

    def _has_tables(self) -> bool:
        with self._begin() as connection:
            return version(connection) is not None

    @contextmanager
    def _begin(self) -> Iterator[sa.Connection]:
        with reached(self._url), self._engine.connect() as connection:
            yield connection


def _trial(row: TrialRow, runs: Sequence[sa.Row[tuple[object, ...]]]) -> TrialView:
    train = sum(run.train_seconds for run in runs)
    evaluate = sum(run.evaluate_seconds for run in runs)
    return TrialView(
        number=row.number,
        state=row.state,
        params=row.params,
        value=row.value,
        values=row.objective,
        metrics=row.metrics,
        nominal=row.nominal,
        examples=row.examples,
        step=row.step,
        budget=row.budget,
        evaluations=row.evaluations,
        rungs=row.rungs,
        reason=row.reason,
        source=row.source,
        seed=row.seed,
        attempts=row.attempt + 1,
        started_ms=row.started_ms,
        ended_ms=row.ended_ms,
        seconds=train + evaluate,
        train_seconds=train,
        evaluate_seconds=evaluate,
        tokens=sum(run.tokens for run in runs),
        worker=runs[-1].worker if runs else "",
        adapter=row.adapter,
        checkpoint=row.checkpoint,
        outcomes=row.outcomes,
        feasible=row.feasible,
    )


def _counts(trial: TrialView) -> bool:
    return trial.state is TrialState.COMPLETE and trial.feasible is not False and trial.value is not None


def _signs(plan: StudyPlan) -> list[int]:
    return [-1 if direction == "maximize" else 1 for direction in plan.directions]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))
