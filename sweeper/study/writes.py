"""The three writes of a study, start, report and end, each whole or not at all, and how a driver that died is mended.

Purpose: the event, Optuna's side and our rows are committed together, so that a crash leaves all of a write or nothing; what is
told inside `together` is one transaction, of a statement for each table. `recover` puts trials of a dead driver back to WAITING.
Keeps what the gateway decides by (rows, curves, finished trials) in memory: ahead of the database inside `together`, equal to it
afterwards, whether its commit came about or failed.
Does not know what to try or to stop. Cost: one transaction, some ten statements however much was told.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState as OptunaState

from sweeper.errors import StudyError
from sweeper.records import Action, Decision, Ending, Outcome, Report, ReportKind, TrialState
from sweeper.study.batch import Batch
from sweeper.study.ledger import Ledger, NewEvent, decision_event, report_payload
from sweeper.study.optuna_rows import New
from sweeper.study.plan import StudyPlan
from sweeper.study.results import constraint_values, metric_key, result_of
from sweeper.study.samplers import Sampling, ordered_asks
from sweeper.study.store import OptunaStore, Value, ended, is_number
from sweeper.study.trials import TrialRow, read_trials, write_starts, write_trials

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
        self._batch = Batch()
        self._gathering = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is told in here is committed when it is left; if that fails, or it is left by an error, none of it was told.

        Inside another one it is that one which commits.
        """
        if self._gathering:
            yield
            return
        self._gathering = True
        try:
            yield
            self.flush()
        except BaseException:
            self._take_back()
            raise
        finally:
            self._gathering = False

    def flush(self) -> None:
        """Commits what was told so far."""
        batch = self._batch
        if not batch:
            return
        study, distributions = self._plan.name, self._sampling.space.distributions
        with self._ledger.begin() as connection, self._store.within(connection):
            self._ledger.write_events(connection, batch.events)
            self._tell_starts(connection, batch.starts)
            self._ledger.write_reports(connection, batch.reports)
            self._ledger.write_decisions(connection, batch.decisions)
            self._ledger.write_checkpoints(connection, batch.checkpoints)
            self._store.report(connection, batch.values)
            for trial_id in batch.waits:
                self._store.wait(trial_id)
            told = self._store.finish(connection, batch.ends, distributions) if batch.ends else []
            write_trials(connection, study, [(before, self.trials[number]) for number, before in batch.known.trials.items()])
            write_starts(connection, study, [(number, self.trials[number].attempt) for number in batch.starts], self._term)
            batch.usage.write(connection, study)
        self._batch = Batch()
        for end, trial in zip(batch.ends, told, strict=True):
            self._sampling.learn(end.number, trial)

    def settle(self) -> None:
        """Commits what was told since the last start, so that the sampler knows of it."""
        if not self._batch.starts:
            self.flush()

    def _take_back(self) -> None:
        """Memory as it was before what is not committed."""
        known, self._batch = self._batch.known, Batch()
        for number, before in known.trials.items():
            if before is None:
                self.sources[self.trials.pop(number).source] -= 1
                self.waiting.discard(number)
                self.running.discard(number)
            else:
                self._keep(before)
        for number, nominal in known.values:
            del self.curves[number][nominal]
        for number, stop in known.stops.items():
            self._set_stop(number, stop)
        self._reported.difference_update(known.reported)
        self.used.difference_update(known.used)

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
        with self._telling(start=True) as batch:
            batch.events.append(NewEvent("trial_started", row.number, payload, key))
            batch.starts.append(row.number)
            self._change(row)
            signature = self._sampling.space.signature(row.params)
            if signature not in self.used:
                self.used.add(signature)
                batch.known.used.append(signature)
        return self.trials[row.number]

    def progress(self, row: TrialRow, report: Report) -> None:
        """Stores a report between evaluations; one that says nothing is not stored."""
        if not (report.metrics or report.checkpoint):
            return
        key = f"progress:{report.trial}:{report.attempt}:{report.step}:{report.time_ms}"
        with self._telling() as batch:
            batch.events.append(NewEvent("report", report.trial, report_payload(report), key, sure=False))
            self._advance(row, report)

    def has(self, report: Report) -> bool:
        """Whether this very evaluation of this attempt is stored already."""
        return (report.trial, report.attempt, report.nominal) in self._reported

    def evaluation(self, row: TrialRow, report: Report, decide: Callable[[], Decision]) -> Decision:
        """Stores an evaluation and the decision that `decide` takes with its value known, and returns that decision."""
        key = f"report:{report.trial}:{report.attempt}:{report.nominal}"
        value = report.metrics.get(metric_key(self._plan.metrics[0]))
        # A rung redone by a later attempt is stored beside the first; Optuna, and every pruner, keeps the first.
        first = value is not None and report.nominal not in self.curves.get(row.number, {})
        with self._telling() as batch:
            batch.events.append(NewEvent("report", report.trial, report_payload(report), key))
            batch.reports.append((report, value))
            row = self.trials[row.number]
            if first and value is not None and row.trial_id is not None:
                again = any((row.number, attempt, report.nominal) in self._reported for attempt in range(row.attempt))
                batch.values.append(Value(row.trial_id, report.nominal, value, again))
            if first and value is not None and is_number(value):
                self.curves.setdefault(row.number, {})[report.nominal] = value
                batch.known.values.append((row.number, report.nominal))
            place = (report.trial, report.attempt, report.nominal)
            self._reported.add(place)
            batch.known.reported.append(place)
            self._advance(row, report)
            decision = decide()
            if decision.evidence:
                batch.events.append(decision_event(report, decision))
                batch.decisions.append((report, decision))
            if decision.action is Action.STOP:
                self._change_stop(row.number, decision)
        return decision

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
        with self._telling() as batch:
            batch.events.append(NewEvent("trial_ended", row.number, payload, key))
            row = self.trials[row.number]
            assert row.trial_id is not None
            self._change(self._ended(row, outcome, state, reason, values, constraints))
            if state.is_finished():
                batch.ends.append(ended(row.number, row.trial_id, state, values, reason, constraints, row.drawn))
            else:
                batch.waits.append(row.trial_id)
            batch.usage.note((row.number, row.attempt), replace(outcome, reason=reason), ended=True)
            self._change_stop(row.number, None)
        return state

    @contextmanager
    def _telling(self, *, start: bool = False) -> Iterator[Batch]:
        """The batch that takes a write. Starts and what follows from them are never in one: those need Optuna's ids."""
        with self.together():
            if bool(self._batch.starts) is not start:
                self.flush()
            yield self._batch

    def _advance(self, row: TrialRow, report: Report) -> None:
        """What a report says of the trial as such."""
        self._change(_advanced(row, report))
        if report.checkpoint:
            self._batch.checkpoints.append(report)
        self._batch.usage.note((row.number, row.attempt), report, ended=False)

    def _change(self, row: TrialRow) -> None:
        self._batch.known.trials.setdefault(row.number, self.trials.get(row.number))
        self._keep(row)

    def _change_stop(self, number: int, stop: Decision | None) -> None:
        self._batch.known.stops.setdefault(number, self._stops.get(number))
        self._set_stop(number, stop)

    def _set_stop(self, number: int, stop: Decision | None) -> None:
        if stop is None:
            self._stops.pop(number, None)
        else:
            self._stops[number] = stop

    def _keep(self, row: TrialRow) -> None:
        """Keeps a row in memory, and what of it is counted, so that no question goes over all trials."""
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
            finish_order=self._sampling.finished + len(self._batch.ends) if state.is_finished() else None,
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

    def _tell_starts(self, connection: sa.Connection, numbers: Sequence[int]) -> None:
        """Optuna's side of attempts that begin; trials that are new to it get its ids."""
        rows = [self.trials[number] for number in numbers]
        for row in rows:
            if row.trial_id is not None:
                self._store.resume(row.trial_id)
        new = [row for row in rows if row.trial_id is None]
        if not new:
            return
        found = self._store.create(connection, [self._new(row) for row in new], self._sampling.space.distributions)
        for row, trial_id in zip(new, found, strict=True):
            self._keep(replace(row, trial_id=trial_id))

    def _new(self, row: TrialRow) -> New:
        attributes = {"params": dict(row.params), "source": row.source, "seed": row.seed, "examples": row.budget}
        return New(row.number, row.drawn, {"sweeper": attributes})


def _advanced(row: TrialRow, report: Report) -> TrialRow:
    row = replace(row, examples=report.examples, step=report.step, checkpoint=report.checkpoint or row.checkpoint)
    if report.kind is ReportKind.PROGRESS:
        return row
    return replace(row, nominal=report.nominal, metrics=dict(report.metrics), outcomes=report.outcomes or row.outcomes)


def _now() -> int:
    return time.time_ns() // 1_000_000
