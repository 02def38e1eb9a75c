"""Time left while a sweep runs: the forecast again and again, from what its trials have really taken.

Fed with the sweep's events by the driver's thread, asked by whoever draws. The first forecast is kept: it is what the sweep is
held against when it is over. It is made as soon as there is a speed: at once where one was probed or observed before, else when
every trial that runs has been evaluated once.
Does not know who draws, or where the forecast is stored. Cost: at most a hundredth of the time, on the asking thread.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, replace

from sweeper.records import Action, Decision, Report, ReportKind, TrialSpec, TrialState
from sweeper.study.budget import Device
from sweeper.study.plan import StudyPlan
from sweeper.sweep.forecast.forecast import Forecast, Range, forecast
from sweeper.sweep.forecast.observed import Observed
from sweeper.sweep.forecast.outlook import Begun, Configurations, History, was_judged
from sweeper.sweep.forecast.simulate import World
from sweeper.sweep.forecast.speed import Speed

FIRST_SPREAD = 0.12
"""Uncertainty of a forecast from a sweep's first reports."""

_SHARE = 0.01
_LEAST_SECONDS = 5.0
_LEAST_WORK, _MOST_WAIT = 2.0, 3.0


@dataclass(frozen=True)
class First:
    """The first forecast: seconds of the whole run, made `after` seconds, out of `source` (probe, study or reports)."""

    seconds: Range
    after: float
    source: str


class Estimator:
    """One run's time left. `frame` is the speed as far as it is known; `source` says from where: "" if nothing was measured."""

    def __init__(
        self, plan: StudyPlan, frame: Speed, history: History, observed: Observed, device: Device, source: str = ""
    ) -> None:
        self._plan, self._frame, self._device = plan, frame, device
        self._history = history
        self._observed = observed
        self._source = source or ("study" if observed.known else "")
        self._configurations = Configurations(plan, history)
        self._running: dict[int, tuple[TrialSpec, int]] = {}  # with the examples it has seen
        self._fresh: set[int] = set()  # running, not evaluated yet
        self._waiting = {trial.number: trial for trial in history.begun}
        self._judged = dict(history.judged)
        self._reached = Counter(history.reached)
        self._started, self._ended, self._failed = history.started, history.ended, history.failed
        self._spent: dict[tuple[int, int], float] = {}
        self._workers: set[str] = set()
        self._clock: tuple[float, float] | None = None  # when the first report came, and what had been spent by then
        self._most = 0
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._left: tuple[Range, float] | None = None
        self._again = 0.0
        self.first: First | None = None

    def shared(self, engines: int, slots: int, micro_tokens: int) -> None:
        """What the executor found: engines, trials in each, tokens of a pass."""
        with self._lock:
            micro = micro_tokens or self._frame.micro_tokens
            self._frame = replace(self._frame, engines=max(1, engines), slots=max(1, slots), micro_tokens=micro)

    def started(self, trial: TrialSpec) -> None:
        """A trial was handed to the executor."""
        with self._lock:
            left = self._waiting.pop(trial.number, None)
            self._running[trial.number] = (trial, left.examples if left is not None else 0)
            self._fresh.add(trial.number)
            self._started = max(self._started, trial.number + 1)
            self._most = max(self._most, len(self._running))

    def reported(self, report: Report, decision: Decision) -> None:
        """A report came and was answered."""
        with self._lock:
            if report.trial not in self._running:
                return
            trial, _ = self._running[report.trial]
            self._running[report.trial] = (trial, report.examples)
            self._observed.note(trial, report)
            self._spent[report.trial, report.attempt] = report.train_seconds + report.evaluate_seconds
            self._workers.add(report.worker)
            self._clock = self._clock or (time.monotonic(), sum(self._spent.values()))
            if report.kind is not ReportKind.PROGRESS:
                self._fresh.discard(report.trial)
            if report.kind is ReportKind.RUNG:
                self._reached[report.nominal] += 1
                self._note_rung(report, decision)

    def _note_rung(self, report: Report, decision: Decision) -> None:
        evidence = decision.evidence
        if report.trial and was_judged(evidence.get("pruner"), evidence.get("cutoff")):
            kept, gone = self._judged.get(report.nominal, (0, 0))
            stopped = decision.action is Action.STOP
            self._judged[report.nominal] = (kept + (not stopped), gone + stopped)

    def ended(self, trial: int, state: TrialState) -> None:
        """A trial left the executor."""
        with self._lock:
            known = self._running.pop(trial, None)
            self._fresh.discard(trial)
            if state.is_finished():
                self._ended += 1
                self._failed += state is TrialState.FAIL
            elif known is not None:
                self._waiting[trial] = Begun(trial, known[0].params, known[1])

    def make_first(self) -> First | None:
        """The first forecast, if there is a speed now and none was made; else None. Takes a second at most."""
        ready = bool(self._source) or (self._observed.known and not self._fresh)
        if self.first is not None or not ready:
            return None
        after = time.monotonic() - self._began
        found = self._forecast(100, 1.0)
        self.first = First(found.seconds.shifted(after), after, self._source or "reports")
        return self.first

    def left(self) -> Range | None:
        """Seconds left, with an 80 % interval; None while nothing is known. Between two forecasts it counts down."""
        if self.first is None or not self._observed.known:
            return self.first.seconds.shifted(self._began - time.monotonic()) if self.first is not None else None
        now = time.monotonic()
        if now >= self._again:
            self._left = (self._forecast(20, 0.5).seconds, now)
            self._again = now + max(_LEAST_SECONDS, (time.monotonic() - now) / _SHARE)
        assert self._left is not None
        return self._left[0].shifted(self._left[1] - now)

    def _forecast(self, runs: int, seconds: float) -> Forecast:
        with self._lock:
            world = World(self._plan, self._speed(), self._configurations, self._now(), self._device, bool(self._workers))
        return forecast(world, runs=runs, seconds=seconds)

    def _speed(self) -> Speed:
        frame = self._frame
        if self._most > frame.engines * frame.slots:
            # The spec and the machine promised less than the executor made of them.
            engines = max(frame.engines, len(self._workers))
            frame = replace(frame, engines=engines, slots=-(-self._most // engines))
        if not self._observed.known:
            return frame
        speed = replace(self._observed.speed(frame), wait=self._wait())
        return speed if self._ended > self._history.ended else replace(speed, spread=FIRST_SPREAD)

    def _wait(self) -> float:
        """Seconds that went by for each second of work, since work began."""
        if self._clock is None:
            return 1.0
        since, before = self._clock
        worked = sum(self._spent.values()) - before
        gone = (time.monotonic() - since) * max(1, min(len(self._workers), self._most))
        return min(_MOST_WAIT, max(1.0, gone / worked)) if worked > _LEAST_WORK else 1.0

    def _now(self) -> History:
        begun = [Begun(number, trial.params, examples) for number, (trial, examples) in self._running.items()]
        return History(
            started=self._started,
            ended=self._ended,
            failed=self._failed,
            begun=(*begun, *self._waiting.values()),
            judged=dict(self._judged),
            reached=dict(self._reached),
            driven=self._history.driven + time.monotonic() - self._began,
            device_seconds=self._history.device_seconds + sum(self._spent.values()),
        )
