"""What every executor shares: the seam's protocols, how an engine is built, and the loop that drives one engine in process.

    drive:  admit while slots are free -> step -> reports to the source, its answers to the engine -> ended trials to the source

Does not know: what a trial is made of, what a study is, Ray. Cost: one call of the source for each report, and at least one call
of `decisions` every 2 s; microseconds otherwise.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from sweeper.engine.base import Capacity, Ended, Engine, EngineSetup, Event
from sweeper.errors import TrialError
from sweeper.executors.interrupt import Interrupts, deferred
from sweeper.records import (
    Action,
    Decision,
    Depot,
    Done,
    Ending,
    Executor,
    Outcome,
    Report,
    ReportKind,
    TrialSource,
    TrialSpec,
    Wait,
)

__all__ = [
    "EngineFactory",
    "Executor",
    "Sharing",
    "TrialSource",
    "Watch",
    "calls_for_engine",
    "drive",
    "trial_engine",
]

EngineFactory = Callable[[EngineSetup, Depot], Engine]
"""Builds an engine where it is to live; picklable. Raises UserError if the model or the data cannot be used."""

T = TypeVar("T")

ASK_SECONDS = 1.0  # between questions to the source while nothing happens; the protocol allows 2
IDLE_SECONDS = 0.05

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sharing:
    """Which engines train a sweep, and the largest number of trials that were inside one of them at once."""

    engines: tuple[Capacity, ...]
    most: int = 0

    def packs(self) -> bool:
        """Whether any engine has room for several trials, or a reason to have none."""
        return any(engine.slots > 1 or engine.reason for engine in self.engines)

    def plan(self) -> str:
        """A sentence for the start: `2 engines of 4 slots: REASON`."""
        count = "1 engine" if len(self.engines) == 1 else f"{len(self.engines)} engines"
        slots = sorted({engine.slots for engine in self.engines})
        each = f"{slots[0]} slot" + ("s" if slots[0] > 1 else "") if len(slots) == 1 else f"{slots[0]} to {slots[-1]} slots"
        reasons = list(dict.fromkeys(engine.reason for engine in self.engines if engine.reason))
        return f"{count} of {each}" + (f": {reasons[0]}" if reasons else "")

    def warning(self) -> str:
        """Where packed numbers are not those of a trial alone to the bit, though they should be; else empty."""
        if all(engine.steady for engine in self.engines):
            return ""
        return (
            "on this processor a row of a matrix product depends on how many others there are: a trial's numbers are the same "
            "packed or alone within rounding only, and two runs with search.deterministic may differ"
        )


class Watch(Protocol):
    """Told, on the executor's thread, what people want to know of engines; must return quickly and never raise."""

    def notice(self, text: str) -> None:
        """A sentence for people."""
        ...

    def sharing(self, sharing: Sharing) -> None:
        """The engines are there, or more trials than ever before are inside one of them."""
        ...


class Unwatched:
    """The watch that nobody keeps."""

    def notice(self, text: str) -> None:
        """Nothing."""

    def sharing(self, sharing: Sharing) -> None:
        """Nothing."""


def trial_engine(setup: EngineSetup, depot: Depot) -> Engine:
    """The engine that trains; torch is imported here and not before."""
    from sweeper.engine.engine import TrialEngine

    engine: Engine = TrialEngine(setup, depot)
    return engine


def calls_for_engine(decision: Decision, parked: bool) -> bool:
    """Whether the engine must hear of a decision: STOP and PAUSE always, CONTINUE where the trial is parked, LATER never."""
    return decision.action in (Action.STOP, Action.PAUSE) or (decision.action is Action.CONTINUE and parked)


class SourceGuard:
    """Calls a source, and notes that it failed, so that nothing more is told to it."""

    def __init__(self) -> None:
        self.failed = False

    def __call__(self, call: Callable[[], T]) -> T:
        """What `call` returns. Raises what it raises."""
        try:
            return call()
        except KeyboardInterrupt:
            raise
        except BaseException:
            self.failed = True
            raise


def tell_all(source: TrialSource, events: Sequence[Event]) -> list[tuple[Event, Decision | None]]:
    """Tells a source what happened, all of it together; each event with what was decided on it, once the source has kept it."""
    answers: list[tuple[Event, Decision | None]] = []
    with source.together():
        for event in events:
            if isinstance(event, Report):
                answers.append((event, source.on_report(event)))
            else:
                source.on_end(event.trial, event.outcome)
                answers.append((event, None))
    return answers


def drive(engine: Engine, source: TrialSource, capacity: Capacity | None = None, watch: Watch | None = None) -> None:
    """Trains with one engine until the source is Done and every trial has ended. `watch` is told of its `capacity`.

    Ctrl-C (noted, and acted on between two steps) preempts all trials, then raises KeyboardInterrupt. So does any error of
    the engine; after an error of the source nothing more is told to it. The engine stays open: closing it is its maker's.
    """
    with deferred() as interrupts:
        _Drive(engine, source, interrupts, capacity, watch or Unwatched()).run()


class _Drive:
    """One run of `drive`. `inside` are the trials in slots, `parked` those of them that wait for a decision."""

    def __init__(
        self, engine: Engine, source: TrialSource, interrupts: Interrupts, capacity: Capacity | None, watch: Watch
    ) -> None:
        self._engine = engine
        self._source = source
        self._interrupts = interrupts
        self._watch = watch
        self._sharing = Sharing((capacity,) if capacity is not None else ())
        self._inside: set[int] = set()
        self._parked: set[int] = set()
        self._events: deque[Event] = deque()
        self._done = False
        self._hungry = True  # something happened since the source last said Wait
        self._asked = 0.0
        self._most: int | None = None  # trials at once, where memory had no room for one more
        self._tell = SourceGuard()

    def run(self) -> None:
        if self._sharing.packs():
            self._watch.notice(self._sharing.plan())
        if warning := self._sharing.warning():
            self._watch.notice(warning)
        try:
            while not (self._done and not self._inside):
                if self._interrupts.requested:
                    raise KeyboardInterrupt
                self._turn()
        except KeyboardInterrupt:
            self._preempt("interrupted")
            raise
        except BaseException as error:
            if not self._tell.failed:
                self._preempt(f"the executor stopped: {error}")
            raise

    def _turn(self) -> None:
        self._admit()
        if len(self._inside) > self._sharing.most:
            self._sharing = replace(self._sharing, most=len(self._inside))
            self._watch.sharing(self._sharing)
        if self._inside:
            self._events.extend(self._engine.step())
        happened = bool(self._events)
        self._drain()
        self._steer(happened)
        if self._inside <= self._parked and not (self._done and not self._inside):
            time.sleep(IDLE_SECONDS)

    def _admit(self) -> None:
        while not self._done and self._hungry and self._engine.available() > 0 and self._has_room():
            answer = self._tell(self._source.next_trial)
            if isinstance(answer, Done):
                self._done = True
            elif isinstance(answer, Wait):
                self._hungry = False
            else:
                self._start(answer)

    def _has_room(self) -> bool:
        return self._most is None or len(self._inside) < self._most

    def _start(self, trial: TrialSpec) -> None:
        self._inside.add(trial.number)
        try:
            self._engine.admit(trial)
        except TrialError as error:
            self._events.append(Ended(trial.number, Outcome(Ending.FAILED, reason=str(error))))
            self._drain()
        except MemoryError as error:
            self._most = max(1, len(self._inside) - 1)
            self._watch.notice(f"{error}; from now on {self._most} train at once")
            outcome = Outcome(Ending.PREEMPTED, reason=str(error), checkpoint=trial.resume_from)
            self._events.append(Ended(trial.number, outcome))
            self._drain()

    def _drain(self) -> None:
        """Hands on every event; they leave the queue once the source has kept them, so that an interrupt in between loses none."""
        while self._events:
            for event, decision in self._tell(lambda: tell_all(self._source, list(self._events))):
                self._events.popleft()
                if isinstance(event, Ended):
                    self._end(event)
                elif decision is not None:
                    self._report(event, decision)

    def _report(self, report: Report, decision: Decision) -> None:
        if report.kind is ReportKind.RUNG:
            self._parked.add(report.trial)
        self._hungry = self._hungry or report.kind is not ReportKind.PROGRESS
        self._obey(decision, report.trial)

    def _end(self, event: Ended) -> None:
        self._inside.discard(event.trial)
        self._parked.discard(event.trial)
        self._hungry = True

    def _steer(self, happened: bool) -> None:
        now = time.monotonic()
        if not happened and now - self._asked < (IDLE_SECONDS * 4 if self._parked else ASK_SECONDS):
            return
        self._asked, self._hungry = now, True
        for decision in self._tell(self._source.decisions):
            self._obey(decision, decision.trial)
        self._drain()

    def _obey(self, decision: Decision, trial: int) -> None:
        if trial in self._inside and calls_for_engine(decision, trial in self._parked):
            self._parked.discard(trial)
            self._events.extend(self._engine.decide(decision))

    def _preempt(self, reason: str) -> None:
        """Ends every trial as PREEMPTED, with the checkpoint that the engine could still write."""
        try:
            self._events.extend(self._engine.preempt())
        except Exception as error:
            _log.warning("the engine could not write its last checkpoints: %s", error)
        outcomes = {event.trial: event.outcome for event in self._events if isinstance(event, Ended)}
        for event in self._events:
            if isinstance(event, Report):
                self._source.on_report(event)  # the answer comes too late
        for trial in sorted(self._inside):
            self._source.on_end(trial, outcomes.get(trial, Outcome(Ending.PREEMPTED, reason=reason)))
        self._inside.clear()
