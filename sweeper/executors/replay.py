"""An engine that trains nothing: it replays recorded curves, in as much time as it is told to take.

Purpose: the double of the engine. Executors, samplers and pruners are tested and simulated with it, on curves that were recorded
once or written by hand; it parks, checkpoints, resumes and fails as the true engine does.
Does not know: models, data, torch. Cost: `seconds` for each evaluation, all trials of an engine at once; 0 is as fast as possible.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sweeper.engine.base import Capacity, Ended, Engine, EngineSetup, Event
from sweeper.errors import TrialError
from sweeper.records import Action, Decision, Depot, Ending, Outcome, ParamValue, Report, ReportKind, TrialSpec

Curve = Callable[[TrialSpec, int], float]
"""The metric of a trial at its evaluation number 0, 1, ...; NaN, or a TrialError, fails the trial there."""

PIECE_SECONDS = 0.25
PROGRESS_SECONDS = 1.5


@dataclass(frozen=True)
class Recorded:
    """A curve looked up by the value of one searched parameter. Raises TrialError for one that was not recorded."""

    param: str
    curves: Mapping[ParamValue, Sequence[float]]

    def __call__(self, trial: TrialSpec, index: int) -> float:
        """The value recorded at evaluation `index`; the last one where the curve is shorter."""
        value = trial.params.get(self.param)
        if value not in self.curves:
            raise TrialError(f"no curve was recorded for {self.param} {value!r}")
        curve = self.curves[value]
        return curve[min(index, len(curve) - 1)]


@dataclass(frozen=True)
class Replay:
    """The factory of replaying engines: an EngineFactory, picklable if its curve is."""

    curve: Curve
    seconds: float = 0.0  # from one evaluation to the next
    metric: str = "validation/loss"

    def __call__(self, setup: EngineSetup, depot: Depot) -> Engine:
        return ReplayEngine(setup, depot, self.curve, self.seconds, self.metric)


@dataclass
class _Slot:
    trial: TrialSpec
    index: int = 0  # of the next evaluation
    left: float = 0.0  # seconds to it
    parked: bool = False
    told: float = field(default_factory=time.monotonic)
    began: float = field(default_factory=time.monotonic)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def nominal(self) -> int:
        """Examples at the last evaluation that was reached."""
        return self.trial.evaluations[self.index - 1] if self.index else 0


class ReplayEngine:
    """An `Engine` over recorded curves. `setup.slots` trials at once, one where that is left open."""

    def __init__(self, setup: EngineSetup, depot: Depot, curve: Curve, seconds: float, metric: str) -> None:
        self._setup = setup
        self._depot = depot
        self._curve = curve
        self._seconds = seconds
        self._metric = metric
        self._slots: dict[int, _Slot] = {}

    def capacity(self) -> Capacity:
        """The setup's slots, one where it leaves them open; tokens mean nothing here."""
        return Capacity(max(1, self._setup.slots), self._setup.micro_tokens or 1)

    def available(self) -> int:
        """Free slots."""
        return self.capacity().slots - len(self._slots)

    def trials(self) -> list[int]:
        """Numbers of the trials in slots."""
        return list(self._slots)

    def admit(self, trial: TrialSpec) -> None:
        """Puts a trial into a free slot, at its checkpoint if it has one. Raises TrialError if that is gone or no slot is free."""
        if self.available() < 1:
            raise TrialError(f"trial {trial.number} finds no free slot; there are {self.capacity().slots}")
        slot = _Slot(trial, left=self._seconds)
        if trial.resume_from is not None:
            try:
                slot.index = int(json.loads(self._depot.get(trial.resume_from)["replay.json"])["index"])
            except FileNotFoundError as error:
                raise TrialError(f"checkpoint {trial.resume_from} is not there: {error}") from error
        self._slots[trial.number] = slot

    def step(self) -> list[Event]:
        """Lets a piece of time go by for all trials that are not parked, and reports what they reached in it."""
        running = [slot for slot in self._slots.values() if not slot.parked]
        if not running:
            return []
        piece = min([PIECE_SECONDS, *(slot.left for slot in running)])
        if piece > 0:
            time.sleep(piece)
        events: list[Event] = []
        for slot in running:
            slot.left -= piece
            events += self._evaluate(slot) if slot.left <= 0 else self._progress(slot)
        return events

    def decide(self, decision: Decision) -> list[Ended]:
        """Carries out a decision on a trial in a slot; one on another trial is nothing."""
        slot = self._slots.get(decision.trial)
        if slot is None or decision.action is Action.LATER:
            return []
        if decision.action is Action.STOP:
            return [self._end(slot, Ending.PRUNED, decision.reason)]
        if decision.action is Action.PAUSE:
            return [self._end(slot, Ending.PAUSED, decision.reason, checkpoint=self._checkpoint(slot))]
        slot.parked = False
        return []

    def preempt(self) -> list[Ended]:
        """Checkpoints every trial and frees all slots."""
        return [self._end(slot, Ending.PREEMPTED, checkpoint=self._checkpoint(slot)) for slot in list(self._slots.values())]

    def close(self) -> None:
        """Forgets everything."""
        self._slots.clear()

    def _progress(self, slot: _Slot) -> list[Event]:
        if time.monotonic() - slot.told < PROGRESS_SECONDS:
            return []
        return [self._report(slot, ReportKind.PROGRESS)]

    def _evaluate(self, slot: _Slot) -> list[Event]:
        try:
            value = self._curve(slot.trial, slot.index)
        except TrialError as error:
            return [self._end(slot, Ending.FAILED, str(error))]
        slot.index, slot.left = slot.index + 1, self._seconds
        slot.metrics = {self._metric: value}
        if math.isnan(value):
            return [self._end(slot, Ending.FAILED, f"{self._metric} is NaN at {slot.nominal} examples")]
        if slot.index == len(slot.trial.evaluations):
            report = self._report(slot, ReportKind.EVALUATION)
            name = f"adapters/{slot.trial.study}/{slot.trial.number}"
            adapter = self._depot.put(name, {"replay.json": json.dumps(slot.metrics).encode()})
            return [report, self._end(slot, Ending.COMPLETED, adapter=adapter)]
        slot.parked = slot.nominal in slot.trial.rungs
        if slot.parked:
            return [self._report(slot, ReportKind.RUNG, self._checkpoint(slot))]
        return [self._report(slot, ReportKind.EVALUATION)]

    def _checkpoint(self, slot: _Slot) -> str:
        name = f"checkpoints/{slot.trial.study}/{slot.trial.number}/{slot.nominal}"
        return self._depot.put(name, {"replay.json": json.dumps({"index": slot.index}).encode()})

    def _report(self, slot: _Slot, kind: ReportKind, checkpoint: str | None = None) -> Report:
        slot.told = time.monotonic()
        return Report(
            trial=slot.trial.number,
            kind=kind,
            nominal=slot.nominal,
            examples=slot.nominal,
            step=slot.index,
            time_ms=int(time.time() * 1000),
            metrics={} if kind is ReportKind.PROGRESS else dict(slot.metrics),
            attempt=slot.trial.attempt,
            checkpoint=checkpoint,
            train_seconds=slot.told - slot.began,
            worker=self._setup.worker,
        )

    def _end(
        self, slot: _Slot, ending: Ending, reason: str = "", checkpoint: str | None = None, adapter: str | None = None
    ) -> Ended:
        del self._slots[slot.trial.number]
        outcome = Outcome(
            ending=ending,
            reason=reason,
            metrics=dict(slot.metrics),
            nominal=slot.nominal,
            examples=slot.nominal,
            adapter=adapter,
            checkpoint=checkpoint,
            train_seconds=time.monotonic() - slot.began,
            worker=self._setup.worker,
        )
        return Ended(slot.trial.number, outcome)
