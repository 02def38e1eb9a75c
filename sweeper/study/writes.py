"""The three writes of a study, start, report and end, each one transaction, and how a driver that died is mended.

Purpose: the event, Optuna's side and our rows are committed together, so that a crash leaves all of a write or nothing; `recover`
puts trials whose driver is gone back to WAITING. Keeps what the gateway decides by (rows, curves, finished trials) in memory, equal
to the database after every write.
Does not know what to try or to stop. Cost: one transaction a write.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from sweeper.errors import StudyError
from sweeper.records import Action, Decision, Ending, Outcome, Report, ReportKind, TrialState
from sweeper.study.ledger import Ledger, report_payload
from sweeper.study.plan import StudyPlan
from sweeper.study.results import constraint_values, metric_key, result_of
from sweeper.study.samplers import Sampling, ordered_asks
from sweeper.study.store import OptunaStore, is_number
from sweeper.study.trials import TrialRow, read_trials, write_start, write_trial, write_usage

RUNNING = (TrialState.RUNNING, TrialState.PARKED)


class StudyWrites:
    """A study's rows in memory, and the only code that changes them."""

    def __init__(self, plan: StudyPlan, ledger: Ledger, store: OptunaStore, sampling: Sampling, term: int) -> None:
        self._plan = plan
        self._ledger = ledger
        self._store = store
        self._sampling = sampling
        self._term = term
        with ledger.begin() as connection:
            rows = read_trials(connection, plan.name)
        self.trials: dict[int, TrialRow] = {}
        self.waiting: set[int] = set()
        self.running: set[int] = set()
        self.sources: Counter[str] = Counter()
        for row in rows:
            self._keep(row)
        self.curves: dict[int, dict[int, float]] = ledger.curves()
        self.used = {sampling.space.signature(row.params) for row in rows}
        self._reported = ledger.reported()
        self._stops: dict[int, Decision] = {}

    def start(self, row: TrialRow) -> TrialRow:
        """Begins an attempt of a trial, a new trial included."""
        key = f"trial_started:{row.number}:{row.attempt}"
        payload = {
            "params": dict(row.params),
            "attempt": row.attempt,
            "source": row.source,
            "seed": row.seed,
            "examples": row.budget,
            "resume_from": row.checkpoint,
        }
        with self._ledger.begin() as connection, self._store.within(connection):
            self._ledger.insert_event(connection, "trial_started", row.number, payload, key)
            row = self._tell_start(connection, row)
            write_trial(connection, self._plan.name, row, self.trials.get(row.number))
            write_start(connection, self._plan.name, row, self._term)
        self._keep(row)
        self.used.add(self._sampling.space.signature(row.params))
        return row

    def progress(self, row: TrialRow, report: Report) -> None:
        """Stores a report between evaluations; one that says nothing is not stored."""
        if not (report.metrics or report.checkpoint):
            return
        advanced = _advanced(row, report)
        key = f"progress:{report.trial}:{report.attempt}:{report.step}:{report.time_ms}"
        with self._ledger.begin() as connection:
            self._ledger.write_event(connection, "report", report.trial, report_payload(report), key)
            if report.checkpoint:
                self._ledger.write_checkpoint(connection, report)
            write_trial(connection, self._plan.name, advanced, row)
            write_usage(connection, self._plan.name, row.number, row.attempt, report, ended=False)
        self._keep(advanced)

    def has(self, report: Report) -> bool:
        """Whether this very evaluation of this attempt is stored already."""
        return (report.trial, report.attempt, report.nominal) in self._reported

    def evaluation(self, row: TrialRow, report: Report, decide: Callable[[], Decision]) -> Decision:
        """Stores an evaluation and the decision that `decide` takes with its value known, and returns that decision."""
        key = f"report:{report.trial}:{report.attempt}:{report.nominal}"
        value = report.metrics.get(metric_key(self._plan.metrics[0]))
        # A rung redone by a later attempt is stored beside the first; Optuna, and every pruner, keeps the first.
        first = value is not None and report.nominal not in self.curves.get(row.number, {})
        advanced = _advanced(row, report)
        with (
            self._known(row.number, report.nominal, value if first else None),
            self._ledger.begin() as connection,
            self._store.within(connection),
        ):
            self._ledger.insert_event(connection, "report", report.trial, report_payload(report), key)
            self._ledger.write_report(connection, report, value)
            if first and value is not None and row.trial_id is not None:
                again = any((row.number, attempt, report.nominal) in self._reported for attempt in range(row.attempt))
                self._store.report(connection, row.trial_id, report.nominal, value, again=again)
            decision = decide()
            if decision.evidence:
                self._ledger.write_decision(connection, report, decision)
            if report.checkpoint:
                self._ledger.write_checkpoint(connection, report)
            write_trial(connection, self._plan.name, advanced, row)
            write_usage(connection, self._plan.name, row.number, row.attempt, report, ended=False)
        self._reported.add((report.trial, report.attempt, report.nominal))
        if decision.action is Action.STOP:
            self._stops[row.number] = decision
        self._keep(advanced)
        return decision

    @contextmanager
    def _known(self, number: int, nominal: int, value: float | None) -> Iterator[None]:
        """The value is on the trial's curve in here, and afterwards unless it could not be stored."""
        if not is_number(value):
            yield
            return
        assert value is not None
        curve = self.curves.setdefault(number, {})
        curve[nominal] = value
        try:
            yield
        except BaseException:
            del curve[nominal]
            raise

    def end(self, row: TrialRow, outcome: Outcome) -> TrialState:
        """Ends a stay."""
        stop = self._stops.get(row.number)
        state, reason, values = result_of(
            self._plan, outcome, stop.reason if stop else "", bool(stop and stop.evidence.get("doomed"))
        )
        key = f"trial_ended:{row.number}:{row.attempt}"
        payload = {**{name: getattr(outcome, name) for name in Outcome.__dataclass_fields__}, "metrics": dict(outcome.metrics)}
        payload.update(state=str(state), reason=reason, values=values, attempt=row.attempt)
        constraints = constraint_values(self._plan, outcome.metrics) if state is TrialState.COMPLETE else {}
        ended = self._ended(row, outcome, state, reason, values, constraints)
        told: FrozenTrial | None = None
        assert row.trial_id is not None
        with self._ledger.begin() as connection, self._store.within(connection):
            self._ledger.insert_event(connection, "trial_ended", row.number, payload, key)
            if state.is_finished():
                space = self._sampling.space
                told = self._store.finish(
                    connection, row.trial_id, state, values, reason, constraints, row.drawn, space.distributions
                )
            else:
                self._store.wait(row.trial_id)
            write_trial(connection, self._plan.name, ended, row)
            write_usage(connection, self._plan.name, row.number, row.attempt, replace(outcome, reason=reason), ended=True)
        if told is not None:
            self._sampling.learn(row.number, told)
        self._keep(ended)
        self._stops.pop(row.number, None)
        return state

    def _keep(self, row: TrialRow) -> None:
        """Keeps a row in memory as it is stored, and what of it is counted, so that no question goes over all trials."""
        if row.number not in self.trials:
            self.sources[row.source] += 1
        for state, numbers in ((row.state is TrialState.WAITING, self.waiting), (row.state in RUNNING, self.running)):
            (numbers.add if state else numbers.discard)(row.number)
        self.trials[row.number] = row

    def _ended(
        self,
        row: TrialRow,
        outcome: Outcome,
        state: TrialState,
        reason: str,
        values: Sequence[float] | None,
        constraints: Mapping[str, float],
    ) -> TrialRow:
        """The row as it is once the stay has ended so."""
        return replace(
            row,
            state=state,
            reason=reason,
            objective=tuple(values) if values is not None else None,
            value=values[0] if values is not None else None,
            metrics=dict(outcome.metrics) or row.metrics,
            nominal=outcome.nominal or row.nominal,
            examples=outcome.examples or row.examples,
            feasible=all(value <= 0 for value in constraints.values()) if state is TrialState.COMPLETE else None,
            adapter=outcome.adapter or row.adapter,
            checkpoint=outcome.checkpoint or row.checkpoint,
            outcomes=outcome.outcomes or row.outcomes,
            finish_order=self._sampling.finished if state.is_finished() else None,
            ended_ms=_now() if state.is_finished() else None,
        )

    def preempted(self, row: TrialRow, reason: str) -> Outcome:
        """The outcome of a running trial that nobody trains any more."""
        return Outcome(Ending.PREEMPTED, reason, nominal=row.nominal, examples=row.examples, checkpoint=row.checkpoint)

    def recover(self) -> list[int]:
        """Teaches the sampler what has finished, and puts lost trials back to WAITING.

        Returns the numbers of the lost trials. Raises StudyError if Optuna's study lacks trials that the ledger has.
        """
        known = self._store.trials()
        missing = [number for number in self.trials if number not in known]
        if missing:
            raise StudyError(
                f"Optuna's study {self._plan.name!r} lacks trial {missing[0]}, which Sweeper stored: it was deleted, or the "
                "database restored in part; restore all of it, or give this sweep another name"
            )
        self._teach(known)
        return [row.number for row in [self.trials[number] for number in sorted(self.running)] if self._mend(row)]

    def _teach(self, known: Mapping[int, Any]) -> None:
        rows = list(self.trials.values())
        finished = sorted((row for row in rows if row.finish_order is not None), key=lambda row: row.finish_order or 0)
        asks = {row.number: row.asked for row in rows if row.source == "sampler"} if self._sampling.remembers else {}
        for what, number in ordered_asks(asks, [row.number for row in finished]):
            if what == "ask":
                self._sampling.replay(number, int(str(asks[number].get("redraws") or 0)))
            else:
                self._sampling.learn(number, known[number])

    def _mend(self, row: TrialRow) -> bool:
        """Ends a trial whose driver is gone; whether it has to be trained again."""
        assert row.trial_id is not None
        found = self._store.trial(row.trial_id).state
        if found.is_finished():
            # Somebody told Optuna by hand. Its word stands: a finished trial can never run again there.
            ending = {OptunaState.PRUNED: Ending.PRUNED}.get(found, Ending.FAILED)
            self.end(row, Outcome(ending, f"ended outside Sweeper as {found.name}", nominal=row.nominal, examples=row.examples))
            return False
        decision = self._ledger.last_decision(row.number, row.attempt)
        if decision is not None and decision.action is Action.STOP:
            self._stops[row.number] = decision
            self.end(row, Outcome(Ending.PRUNED, decision.reason, row.metrics, row.nominal, row.examples, outcomes=row.outcomes))
            return False
        self.end(row, self.preempted(row, "the driver was lost"))
        return True

    def _tell_start(self, connection: sa.Connection, row: TrialRow) -> TrialRow:
        if row.trial_id is not None:
            self._store.resume(row.trial_id)
            return row
        attributes = {"params": dict(row.params), "source": row.source, "seed": row.seed, "examples": row.budget}
        distributions = self._sampling.space.distributions
        trial_id = self._store.create(connection, row.number, row.drawn, distributions, {"sweeper": attributes})
        return replace(row, trial_id=trial_id)


def _advanced(row: TrialRow, report: Report) -> TrialRow:
    row = replace(row, examples=report.examples, step=report.step, checkpoint=report.checkpoint or row.checkpoint)
    if report.kind is ReportKind.PROGRESS:
        return row
    return replace(row, nominal=report.nominal, metrics=dict(report.metrics), outcomes=report.outcomes or row.outcomes)


def _now() -> int:
    return time.time_ns() // 1_000_000
