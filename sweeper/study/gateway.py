"""The gateway: the one object that writes to a study, in one process, the driver.

Purpose: ask, report, decide, end. What is asked for next comes from the ledger, never from Optuna's own queue:

    interrupted trials (same number, last checkpoint) -> trial 0, the default -> search.enqueue -> the sampler

Once `search.budget` is used up the study *drains*: nothing begins, trials that run are told to PAUSE and wait with the checkpoint
that they write then, for a run with a larger budget.

Does not know where trials run, what a tracker does with an event, or how a write is made whole (`writes.py`). Not thread-safe;
its `ledger` is. Cost: on SQLite 1 ms a report or an end and 4 ms an ask, besides the sampler's own (a core at 2 GHz).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from optuna.storages import RDBStorage

from sweeper.errors import BusyError, FencedError, StudyError
from sweeper.records import Action, Decision, Done, Ending, Outcome, Report, ReportKind, TrialSpec, TrialState, Wait
from sweeper.study.budget import Account, Device, read_spent
from sweeper.study.collapse import judge_collapse
from sweeper.study.database import connect, parse, reached
from sweeper.study.fence import STALE_SECONDS, Fence, Heart, prepare_engine
from sweeper.study.ledger import Ledger
from sweeper.study.migrate import upgrade
from sweeper.study.plan import StudyPlan
from sweeper.study.pruners import Curve, Judgement, judge
from sweeper.study.results import metric_key
from sweeper.study.samplers import Sampling, derive_seed
from sweeper.study.space import Params
from sweeper.study.store import OptunaStore, has_study, is_number
from sweeper.study.sweeps import check_identity, write_sweep
from sweeper.study.trials import TrialRow
from sweeper.study.writes import RUNNING, StudyWrites


class Gateway:
    """One driver's hold on one study. Open it with `Gateway.open`; close it when done."""

    def __init__(self, url: str, plan: StudyPlan, *, driver: str, stale: float, device: Device) -> None:
        """Use `Gateway.open`, which also waits."""
        self.plan = plan
        self._url = parse(url)
        with reached(self._url):
            storage = connect(self._url)
            self._engine = storage.engine
            self._fence = Fence(self._engine, plan.name)
            self.ledger = Ledger(self._engine, plan.name)
            try:
                self._take(storage, driver, stale)
                self._before = self.ledger.seconds_driven()
                write_sweep(self.ledger, plan, self.term)
                self._writes = StudyWrites(plan, self.ledger, OptunaStore(storage, plan), self._sampling, self.term)
                self.lost = tuple(self._writes.recover())
                with self.ledger.begin() as connection:
                    self._account = Account(plan.search.budget, device, read_spent(connection, plan.name))
            except BaseException:
                self._fence.release()
                self._engine.dispose()
                raise
        self._opened = time.monotonic()
        self._closed = False
        self._heart = Heart(self._beat)
        self._heart.start()

    def _take(self, storage: RDBStorage, driver: str, stale: float) -> None:
        """Everything that may be refused comes before the study is taken."""
        prepare_engine(self._engine)
        upgrade(self._engine)
        if not check_identity(self._engine, self.plan) and has_study(storage, self.plan.name):
            raise StudyError(f"the database has an Optuna study {self.plan.name!r} that Sweeper did not make; choose another name")
        self._sampling = Sampling(self.plan)
        self._fence.take(driver, stale=stale)
        self._fence.guard()

    @classmethod
    def open(
        cls,
        url: str,
        plan: StudyPlan,
        *,
        driver: str,
        wait: float = 0.0,
        stale: float = STALE_SECONDS,
        device: Device = Device(),  # noqa: B008  frozen
    ) -> Gateway:
        """Creates or loads the study, takes it over from a dead driver and mends what that one left half done.

        `driver` names this driver to people; `wait`: seconds to wait for a live driver to end; `stale`: seconds without a
        heartbeat after which a driver whose process cannot be seen, or is stopped, is taken for dead; `device`: what one engine
        holds, for search.budget. `lost` names the trials that go back to WAITING. Raises BusyError while a live driver has the
        study, StudyError if the name belongs to another study or the sampler cannot search the space, ResourceError if the
        database is out of reach.
        """
        until = time.monotonic() + wait
        while True:
            try:
                return cls(url, plan, driver=driver, stale=stale, device=device)
            except BusyError:
                if time.monotonic() >= until:
                    raise
                time.sleep(0.5)

    @property
    def term(self) -> int:
        """The driver term; rises with each opening."""
        return self._fence.term

    def states(self) -> dict[int, TrialState]:
        """State of every trial by number."""
        return {number: row.state for number, row in self._writes.trials.items()}

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is asked, reported and ended in here is committed at once when it is left, and not to be acted on before.

        If the commit fails, or an error leaves it, none of it was told.
        """
        with reached(self._url), self._writes.together():
            yield

    def next(self) -> TrialSpec | Wait | Done:
        """The next trial to train, RUNNING in the database before it is returned (inside `together`: once that is left).

        Wait: nothing new would begin, but a running trial may yet come back. Done: nothing is left, or the budget is used up.
        """
        over = self.over_budget()
        if over is not None:
            return Done(over)
        with reached(self._url):
            self._writes.settle()
            if self._writes.waiting:
                waiting = self._writes.trials[min(self._writes.waiting)]
                again = replace(waiting, state=TrialState.RUNNING, attempt=waiting.attempt + 1, reason="")
                return self._writes.start(again).spec(self.plan.name)
            why = self._why_no_more()
            if why is None:
                drawn = self._draw()
                if drawn is not None:
                    return self._writes.start(self._new_row(*drawn)).spec(self.plan.name)
                why = "every configuration of the space has been tried"
        return Wait() if self._writes.running else Done(why)

    def report(self, report: Report) -> Decision:
        """Stores a report, then answers it (inside `together`: the answer holds once that is left).

        An evaluation that came before gets the same answer; a report of an attempt that was given up gets STOP.
        """
        row = self._writes.trials.get(report.trial)
        if row is None or row.state not in RUNNING or row.attempt != report.attempt:
            return Decision(report.trial, Action.STOP, "this attempt was given up")
        self._account.note(report.trial, report.attempt, report)
        with reached(self._url):
            if report.kind is ReportKind.PROGRESS:
                self._writes.progress(row, report)
                return Decision(report.trial, Action.CONTINUE)
            if self._writes.has(report):
                self._writes.flush()
                known = self.ledger.last_decision(report.trial, report.attempt, report.nominal)
                return known or Decision(report.trial, Action.CONTINUE)
            return self._writes.evaluation(row, report, lambda: self._decide(row, report))

    def decisions(self) -> list[Decision]:
        """PAUSE for every running trial once the budget is used up; no others, since every report is answered at once."""
        over = self.over_budget()
        if over is None:
            return []
        return [Decision(number, Action.PAUSE, over) for number in sorted(self._writes.running)]

    def end(self, trial: int, outcome: Outcome) -> TrialState:
        """Stores how a stay ended and returns the trial's state. A second end of the same stay changes nothing.

        COMPLETED without a finite value of every objective and constraint is FAIL, and so is a trial that was stopped for a
        value that is no number. PAUSED for the budget is WAITING. Raises StudyError for a trial that was never asked for.
        """
        row = self._writes.trials.get(trial)
        if row is None:
            raise StudyError(f"study {self.plan.name!r} has no trial {trial}; there are {len(self._writes.trials)}")
        if row.state not in RUNNING:
            return row.state
        self._account.note(trial, row.attempt, outcome)
        if outcome.ending is Ending.PAUSED and self.over_budget() is not None:
            outcome = replace(outcome, ending=Ending.PREEMPTED)
        with reached(self._url):
            return self._writes.end(row, outcome)

    def interrupt(self) -> list[int]:
        """Puts every running trial that has not ended back to WAITING, with its last checkpoint; returns their numbers."""
        rows = [self._writes.trials[number] for number in sorted(self._writes.running)]
        with self.together():
            for row in rows:
                self._writes.end(row, self._writes.preempted(row, "interrupted"))
        return [row.number for row in rows]

    def over_budget(self) -> str | None:
        """Which limit of search.budget is reached, in words; None while there is budget left."""
        return self._account.used_up(self.seconds())

    def drained(self) -> str | None:
        """Which limit of search.budget keeps this study from going on; None where it has budget, or nothing left to do."""
        return None if self._complete() else self.over_budget()

    def finished(self) -> bool:
        """Whether nothing is left to do within the budget: no trial runs, and none waits or would begin that may."""
        if self.over_budget() is not None:
            return not self._writes.running
        return self._complete()

    def device_hours(self) -> float:
        """Hours that devices trained and evaluated for this study, earlier runs included."""
        return self._account.hours()

    def _complete(self) -> bool:
        """Whether every trial has ended and no new one would begin, whatever the budget."""
        if any(not state.is_finished() for state in self.states().values()):
            return False
        if self._why_no_more() is not None:
            return True
        return self._fixed() is None and self._sampling.exhausted(self._writes.used)

    def seconds(self) -> float:
        """Driver time spent on the study, earlier runs included."""
        return self._before + time.monotonic() - self._opened

    def close(self) -> None:
        """Releases the study. Trials still running are mended by the next opening: call `interrupt` first. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._heart.stop()
        with contextlib.suppress(FencedError), reached(self._url):
            self.ledger.set_status("finished" if self.finished() else "interrupted")
            self._fence.release()
        self._engine.dispose()

    def _beat(self) -> None:
        with self.ledger.lock:
            self._fence.beat()

    def _why_no_more(self) -> str | None:
        search = self.plan.search
        if search.trials is not None and len(self._writes.trials) >= search.trials:
            return f"all {search.trials} trials have been started (search.trials)"
        if search.time is not None and self.seconds() >= float(search.time):
            return f"{float(search.time):.0f} s of driver time are over (search.time)"
        return None

    def _fixed(self) -> tuple[str, Params] | None:
        space, asked = self._sampling.space, self.plan.search.enqueue
        if not self._writes.trials:
            return "default", space.resolve({})
        # By our own count, so that configurations added for a later run come next.
        tried = self._writes.sources["enqueued"]
        return ("enqueued", space.complete(asked[tried])) if tried < len(asked) else None

    def _draw(self) -> tuple[str, Params, Mapping[str, object]] | None:
        fixed = self._fixed()
        if fixed is not None:
            return (*fixed, {"finished": self._sampling.finished})
        draw = self._sampling.draw(len(self._writes.trials), self._writes.used, self._writes.sources["sampler"])
        return None if draw is None else ("sampler", draw.params, draw.asked())

    def _new_row(self, source: str, params: Params, asked: Mapping[str, object]) -> TrialRow:
        number = len(self._writes.trials)
        budget = self.plan.budget(params)
        evaluations, rungs = self.plan.clock(budget)
        now = time.time_ns() // 1_000_000
        return TrialRow(
            number=number,
            state=TrialState.RUNNING,
            source=source,
            params=params,
            drawn=self._sampling.space.drawn(params),
            asked=asked,
            seed=derive_seed(self.plan.search.seed, "train", number),
            budget=budget,
            evaluations=evaluations,
            rungs=rungs,
            created_ms=now,
            started_ms=now,
        )

    def _decide(self, row: TrialRow, report: Report) -> Decision:
        key = metric_key(self.plan.metrics[0])
        value = report.metrics.get(key)
        if value is None:
            return Decision(row.number, Action.CONTINUE)
        if not is_number(value):
            reason = f"{key} is {value} at {report.nominal} examples"
            return Decision(row.number, Action.STOP, reason, {"pruner": "", "value": value, "rung": report.nominal, "doomed": True})
        judgement = self._judge(row, report)
        if row.number == 0 and judgement.stop:
            judgement = replace(judgement, stop=False, reason=f"the default configuration is never pruned ({judgement.reason})")
        action = Action.STOP if judgement.stop else Action.CONTINUE
        kept = report.kind is ReportKind.RUNG or judgement.reason
        return Decision(row.number, action, judgement.reason, judgement.evidence() if kept else {})

    def _judge(self, row: TrialRow, report: Report) -> Judgement:
        curves = self._writes.curves
        own = Curve(row.number, row.state, curves[row.number])
        collapsed = judge_collapse(self.plan, own, report.nominal)
        if collapsed is not None:
            return collapsed
        at_rung, there = report.kind is ReportKind.RUNG, report.nominal
        trials = self._writes.trials
        # Others are looked at where they are compared: at rungs, and there only those that have been there.
        others = (
            [Curve(n, trials[n].state, curve) for n, curve in curves.items() if n != row.number and there in curve]
            if at_rung
            else []
        )
        return judge(self.plan, own, there, others, at_rung=at_rung)
