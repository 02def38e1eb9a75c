"""A few configurations in the real engine, for a minute at most: how fast this machine does this study's work, and in what memory.

    default alone -> smallest batch alone -> largest batch alone -> the default in all slots, where an engine holds several

A token of a small pass costs up to half as much again as one of a large pass, so both ends of the space's batches are needed.
Each stretch warms up until its trials were evaluated once, then counts whole steps and evaluations of a few rows. Nothing is
written but to a folder that is removed: the study is not touched.
Does not know what is forecast. Cost: building the engine, and `seconds`; one step and one evaluation of each stretch are
always finished, however long they take.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sweeper.data.tokens import TokenSet
from sweeper.engine.base import Capacity, Ended, Engine, EngineSetup
from sweeper.engine.depot import FolderDepot
from sweeper.engine.evaluate import plan as evaluation_plan
from sweeper.errors import ResourceError
from sweeper.executors.base import EngineFactory, trial_engine
from sweeper.records import Action, Decision, Ending, ParamValue, Report, ReportKind, TrialSpec

ROWS = 64
"""Validation rows of an evaluation of the probe, at most: those that the sweep reads between rungs, where they are fewer."""

STEPS = 4
"""Optimizer steps between two evaluations of the probe."""

ENOUGH = 6
"""Evaluations of each trial after which a stretch has seen enough."""

_REBUILT_SECONDS = 30.0


@dataclass(frozen=True)
class Stretch:
    """One configuration's measurement. `passes`: micro-steps; `trials` at once."""

    what: str
    batch: int
    trials: int
    tokens: int
    passes: int
    train_seconds: float
    rows: int
    read_seconds: float

    @property
    def point(self) -> tuple[float, float]:
        """(tokens of a pass, its seconds)."""
        return self.tokens / self.passes, self.train_seconds / self.passes


@dataclass(frozen=True)
class Probe:
    """What was measured. `peak_bytes` is the process's (CPU) or the device's (CUDA) own peak, over all stretches."""

    stretches: tuple[Stretch, ...]
    capacity: Capacity
    build_seconds: float  # of the engine: model and slots
    turn_seconds: float  # of a trial: admitting it and writing it away
    peak_bytes: int

    @property
    def read_seconds(self) -> float:
        """Of a validation row."""
        rows = sum(stretch.rows for stretch in self.stretches)
        return sum(stretch.read_seconds for stretch in self.stretches) / max(1, rows)


def probe(
    setup: EngineSetup,
    default: Mapping[str, ParamValue],
    others: Mapping[str, Mapping[str, ParamValue]],
    *,
    seconds: float = 60.0,
    factory: EngineFactory = trial_engine,
) -> Probe:
    """Measures an engine of this process with the default configuration and with `others`, by what they are called.

    Raises ResourceError if the default configuration cannot be trained here; another that cannot be is left out.
    """
    began = time.monotonic()
    between = evaluation_plan(setup, TokenSet(setup.train).info, TokenSet(setup.validation).info).between
    small = setup.evaluate.model_copy(update={"rows": min(ROWS, between)})
    setup = replace(setup, study=f"{setup.study}-probe", evaluate=small, checkpoint_seconds=1e9, rungs=1)
    with tempfile.TemporaryDirectory(prefix="sweeper-probe-") as folder:
        engine = factory(setup, FolderDepot(Path(folder)))
        built = time.monotonic() - began
        if setup.slots == 0 and built < _REBUILT_SECONDS:
            # The first engine measured the knee, which stays on the node: those of the sweep start as the second one does.
            engine.close()
            again = time.monotonic()
            engine = factory(setup, FolderDepot(Path(folder)))
            built = time.monotonic() - again
        try:
            return _measure(engine, setup, default, others, max(1.0, began + seconds - time.monotonic()), built)
        finally:
            engine.close()


def _measure(
    engine: Engine,
    setup: EngineSetup,
    default: Mapping[str, ParamValue],
    others: Mapping[str, Mapping[str, ParamValue]],
    seconds: float,
    built: float,
) -> Probe:
    capacity = engine.capacity()
    plans = [("default", default, 1), *((what, params, 1) for what, params in others.items())]
    if capacity.slots > 1:
        plans.append(("default, all slots", default, capacity.slots))
    until = time.monotonic() + seconds
    stretches: list[Stretch] = []
    turn = 0.0
    for index, (what, params, count) in enumerate(plans):
        share = max(0.0, until - time.monotonic()) / (len(plans) - index)
        found = _Stretch(engine, setup, params, count, index * 1000).run(share)
        if found.failure and index == 0:
            raise ResourceError(f"the default configuration cannot be trained here: {found.failure}")
        if not found.failure:
            stretches.append(found.stretch(what))
            turn = max(turn, found.turn_seconds)
    return Probe(tuple(stretches), capacity, built, turn, _peak(setup.device))


class _Stretch:
    """`count` trials of one configuration, from admission to eviction."""

    def __init__(self, engine: Engine, setup: EngineSetup, params: Mapping[str, ParamValue], count: int, first: int) -> None:
        self._engine, self._count = engine, count
        self._batch = max(1, int(params.get("batch_size") or 1))
        block = STEPS * self._batch
        clock = tuple(range(block, 1000 * block, block))
        self._specs = [
            TrialSpec(setup.study, first + i, dict(params), seed=first + i, examples=clock[-1], evaluations=clock, rungs=())
            for i in range(count)
        ]
        self._warm: dict[int, Report] = {}
        self._last: dict[int, Report] = {}
        self._rows = 0
        self._evaluated = dict.fromkeys((spec.number for spec in self._specs), 0)
        self.failure = ""
        self.turn_seconds = 0.0

    def run(self, seconds: float) -> _Stretch:
        """Trains until the time is over or enough was seen, then lets go of the trials."""
        began = time.monotonic()
        for spec in self._specs:
            self._engine.admit(spec)
        admitted = time.monotonic()
        while not self.failure and not self._enough(admitted + seconds):
            for event in self._engine.step():
                self._hear(event)
        ended = time.monotonic()
        for number in self._engine.trials():
            self._engine.decide(Decision(number, Action.PAUSE, "probed"))
        # Of a trial's stay: in, a checkpoint at its rung, an export at its end.
        self.turn_seconds = (admitted - began + 2 * (time.monotonic() - ended)) / self._count
        return self

    def _enough(self, until: float) -> bool:
        seen = min(self._evaluated.values())
        return seen >= 2 and (seen >= ENOUGH or time.monotonic() >= until)

    def _hear(self, event: Report | Ended) -> None:
        if isinstance(event, Ended):
            if event.outcome.ending is not Ending.PAUSED:
                self.failure = event.outcome.reason or f"it ended as {event.outcome.ending}"
        elif event.kind is not ReportKind.PROGRESS:
            self._evaluated[event.trial] += 1
            if event.trial in self._warm:
                self._last[event.trial] = event
                self._rows += event.rows
            else:
                self._warm[event.trial] = event

    def stretch(self, what: str) -> Stretch:
        """What was measured after the warm-up."""
        ends = [(self._warm[number], self._last[number]) for number in self._last]
        steps = sum(last.step - warm.step for warm, last in ends) / len(ends)
        tokens = sum(last.tokens - warm.tokens for warm, last in ends)
        return Stretch(
            what=what,
            batch=self._batch,
            trials=self._count,
            tokens=tokens,
            passes=max(1, round(steps)),
            train_seconds=sum(last.train_seconds - warm.train_seconds for warm, last in ends),
            rows=self._rows,
            read_seconds=sum(last.evaluate_seconds - warm.evaluate_seconds for warm, last in ends),
        )


def _peak(device: str) -> int:
    if device != "cpu":
        import torch

        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
