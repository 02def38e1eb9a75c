"""The three writes of a study, start, report and end, and how a driver that died inside one is mended.

Purpose: each write goes intent, Optuna's write, done, as `ledger.py` draws; `recover` finds intents without done and carries them
out. Keeps what the gateway decides by (rows, curves, finished trials) in memory, equal to the database after every write.
Does not know what to try or to stop. Cost: three transactions a write, about 3 ms on SQLite.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from optuna.trial import TrialState as OptunaState

from sweeper.errors import StudyError
from sweeper.records import Action, Decision, Ending, Outcome, Report, ReportKind, TrialState
from sweeper.study.ledger import EventRow, Ledger, report_payload
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
            self.trials = {row.number: row for row in read_trials(connection, plan.name)}
        self.curves: dict[int, dict[int, float]] = ledger.curves()
        self.used = {sampling.space.signature(row.params) for row in self.trials.values()}
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
        with self._ledger.begin() as connection:
            self._ledger.write_event(connection, "trial_started", row.number, payload, key, done=False)
            write_trial(connection, self._plan.name, row)
            write_start(connection, self._plan.name, row, self._term)
        self.trials[row.number] = row
        self.used.add(self._sampling.space.signature(row.params))
        return self._carry_out_start(row, key, known=None)

    def progress(self, row: TrialRow, report: Report) -> None:
        """Stores a report between evaluations; one that says nothing is not stored."""
        if not (report.metrics or report.checkpoint):
            return
        row = _advanced(row, report)
        key = f"progress:{report.trial}:{report.attempt}:{report.step}:{report.time_ms}"
        with self._ledger.begin() as connection:
            self._ledger.write_event(connection, "report", report.trial, report_payload(report), key, done=True)
            if report.checkpoint:
                self._ledger.write_checkpoint(connection, report)
            write_trial(connection, self._plan.name, row)
            write_usage(connection, self._plan.name, row.number, row.attempt, report, ended=False)
        self.trials[row.number] = row

    def has(self, report: Report) -> bool:
        """Whether this very evaluation of this attempt is stored already."""
        return (report.trial, report.attempt, report.nominal) in self._reported

    def evaluation(self, row: TrialRow, report: Report, decide: Callable[[], Decision]) -> Decision:
        """Stores an evaluation, then the decision that `decide` takes with its value known, and returns it."""
        key = f"report:{report.trial}:{report.attempt}:{report.nominal}"
        value = report.metrics.get(metric_key(self._plan.metrics[0]))
        with self._ledger.begin() as connection:
            self._ledger.write_event(connection, "report", report.trial, report_payload(report), key, done=False)
            self._ledger.write_report(connection, report, value)
        self._reported.add((report.trial, report.attempt, report.nominal))
        # A rung redone by a later attempt is stored beside the first; Optuna, and every pruner, keeps the first.
        if report.nominal not in self.curves.get(row.number, {}):
            self._carry_out_value(row, report.nominal, value)
        decision = decide()
        self._settle_report(row, report, key, decision)
        return decision

    def end(self, row: TrialRow, outcome: Outcome) -> TrialState:
        """Ends a stay."""
        stop = self._stops.get(row.number)
        state, reason, values = result_of(
            self._plan, outcome, stop.reason if stop else "", bool(stop and stop.evidence.get("doomed"))
        )
        key = f"trial_ended:{row.number}:{row.attempt}"
        payload = {**asdict(outcome), "metrics": dict(outcome.metrics), "ending": str(outcome.ending)}
        payload.update(state=str(state), reason=reason, values=values, attempt=row.attempt)
        with self._ledger.begin() as connection:
            self._ledger.write_event(connection, "trial_ended", row.number, payload, key, done=False)
        return self._carry_out_end(row, key, payload)

    def preempted(self, row: TrialRow, reason: str) -> Outcome:
        """The outcome of a running trial that nobody trains any more."""
        return Outcome(Ending.PREEMPTED, reason, nominal=row.nominal, examples=row.examples, checkpoint=row.checkpoint)

    def recover(self) -> list[int]:
        """Teaches the sampler what has finished, carries out what was left half done, and puts lost trials back to WAITING.

        Returns the numbers of the lost trials. Raises StudyError if Optuna's study lacks trials that the ledger has.
        """
        known = self._store.trials()
        missing = [row.number for row in self.trials.values() if row.trial_id is not None and row.number not in known]
        if missing:
            raise StudyError(
                f"Optuna's study {self._plan.name!r} lacks trial {missing[0]}, which Sweeper stored: it was deleted, or the "
                "database restored in part; restore all of it, or give this sweep another name"
            )
        self._teach(known)
        for event in self._ledger.undone():
            self._repeat(event, known)
        return [row.number for row in list(self.trials.values()) if row.state in RUNNING and self._mend(row)]

    def _teach(self, known: Mapping[int, Any]) -> None:
        rows = list(self.trials.values())
        finished = sorted((row for row in rows if row.finish_order is not None), key=lambda row: row.finish_order or 0)
        asks = {row.number: row.asked for row in rows if row.source == "sampler"} if self._sampling.remembers else {}
        for what, number in ordered_asks(asks, [row.number for row in finished]):
            if what == "ask":
                self._sampling.replay(number, int(str(asks[number].get("redraws") or 0)))
            else:
                self._sampling.learn(number, known[number])

    def _repeat(self, event: EventRow, known: Mapping[int, Any]) -> None:
        assert event.trial is not None
        row, payload = self.trials[event.trial], dict(event.payload)
        if event.kind == "trial_started":
            self._carry_out_start(row, event.key, known.get(row.number))
        elif event.kind == "trial_ended":
            self._carry_out_end(row, event.key, payload)
        else:
            report = Report(**{**payload, "kind": ReportKind(str(payload["kind"]))})
            if not known[row.number].state.is_finished():
                value = report.metrics.get(metric_key(self._plan.metrics[0]))
                self._carry_out_value(row, report.nominal, self.curves.get(row.number, {}).get(report.nominal, value))
            self._settle_report(row, report, event.key, Decision(row.number, Action.CONTINUE))

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

    def _carry_out_start(self, row: TrialRow, key: str, known: Any) -> TrialRow:
        space = self._sampling.space
        with self._ledger.lock:
            if known is not None and row.trial_id is None:
                row = replace(row, trial_id=known._trial_id)
            elif row.trial_id is None:
                attributes = {"params": dict(row.params), "source": row.source, "seed": row.seed, "examples": row.budget}
                trial_id = self._store.create(row.number, row.drawn, space.distributions, {"sweeper": attributes})
                row = replace(row, trial_id=trial_id)
            else:
                self._store.resume(row.trial_id)
        self._settle(row, key)
        return row

    def _carry_out_value(self, row: TrialRow, nominal: int, value: float | None) -> None:
        if value is None:
            return
        assert row.trial_id is not None
        with self._ledger.lock:
            self._store.report(row.trial_id, nominal, value)
        if is_number(value):
            self.curves.setdefault(row.number, {}).setdefault(nominal, value)

    def _settle_report(self, row: TrialRow, report: Report, key: str, decision: Decision) -> None:
        if decision.action is Action.STOP:
            self._stops[row.number] = decision
        row = _advanced(row, report)
        with self._ledger.begin() as connection:
            self._ledger.mark_done(connection, key)
            if decision.evidence:
                self._ledger.write_decision(connection, report, decision)
            if report.checkpoint:
                self._ledger.write_checkpoint(connection, report)
            write_trial(connection, self._plan.name, row)
            write_usage(connection, self._plan.name, row.number, row.attempt, report, ended=False)
        self.trials[row.number] = row

    def _carry_out_end(self, row: TrialRow, key: str, payload: Mapping[str, Any]) -> TrialState:
        assert row.trial_id is not None
        outcome = _outcome(payload)
        state, reason, values = TrialState(payload["state"]), str(payload["reason"]), payload["values"]
        constraints = constraint_values(self._plan, outcome.metrics) if state is TrialState.COMPLETE else {}
        with self._ledger.lock:
            if state.is_finished():
                self._store.finish(row.trial_id, state, values, reason, constraints)
                self._sampling.learn(row.number, self._store.trial(row.trial_id))
            else:
                self._store.wait(row.trial_id)
        row = replace(
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
            finish_order=self._sampling.finished - 1 if state.is_finished() else None,
            ended_ms=_now() if state.is_finished() else None,
        )
        self._settle(row, key, replace(outcome, reason=reason))
        self._stops.pop(row.number, None)
        return state

    def _settle(self, row: TrialRow, key: str, outcome: Outcome | None = None) -> None:
        with self._ledger.begin() as connection:
            self._ledger.mark_done(connection, key)
            write_trial(connection, self._plan.name, row)
            if outcome is not None:
                write_usage(connection, self._plan.name, row.number, row.attempt, outcome, ended=True)
        self.trials[row.number] = row


def _advanced(row: TrialRow, report: Report) -> TrialRow:
    row = replace(row, examples=report.examples, step=report.step, checkpoint=report.checkpoint or row.checkpoint)
    if report.kind is ReportKind.PROGRESS:
        return row
    return replace(row, nominal=report.nominal, metrics=dict(report.metrics), outcomes=report.outcomes or row.outcomes)


def _outcome(payload: Mapping[str, Any]) -> Outcome:
    known = {name: payload[name] for name in Outcome.__dataclass_fields__ if name in payload}
    return Outcome(**{**known, "ending": Ending(str(payload["ending"]))})


def _now() -> int:
    return time.time_ns() // 1_000_000
