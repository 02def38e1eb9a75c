"""Sweeper's control with no model: gateway, outbox and executor over engines that replay a curve in no time.

Everything that a sweep does for a trial happens, but training: asking, admitting, five reports each committed before its answer
(those of one engine's message together), a decision at the rung, the end, and an outbox that tells a tracker in memory. Neither
side stores checkpoints or results, for there is nothing to store. The clock runs from the first question to the last end, so that
neither Ray's start nor a worker's is in it.
Does not know the other side. Cost: some 10 to 20 ms a trial.
"""

from __future__ import annotations

import gc
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.common import median
from sweeper.engine.base import Engine, EngineSetup
from sweeper.executors.replay import Replay
from sweeper.records import Decision, Depot, Done, Ending, Outcome, Report, ReportKind, TrialSource, TrialSpec, TrialState, Wait
from sweeper.spec.models import EvaluateSpec, ExecutorSpec, SweepSpec, TrainingSpec
from sweeper.study.gateway import Gateway
from sweeper.study.plan import StudyPlan, plan_study, resized

REPORTS = 5
EXAMPLES = 100
SLOTS = 8
SPACE: dict[str, Any] = {
    "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
    "batch_size": {"low": 4, "high": 32, "log": True},
    "weight_decay": {"low": 0.0, "high": 0.1},
    "dropout": {"low": 0.0, "high": 0.3},
}
T = TypeVar("T")


@dataclass(frozen=True)
class Bowl:
    """A loss that falls with every report and is lowest near a learning rate of 1e-3: something for a sampler to learn."""

    def __call__(self, trial: TrialSpec, index: int) -> float:
        """The loss at report `index`."""
        return loss_at(float(trial.params["learning_rate"] or 0.0), index)


@dataclass(frozen=True)
class Unstored:
    """An EngineFactory: engines that replay `Bowl` and store nothing."""

    def __call__(self, setup: EngineSetup, depot: Depot) -> Engine:
        """The engine; `depot` is left alone."""
        return Replay(Bowl())(setup, _Nowhere())


class _Nowhere:
    def put(self, name: str, files: Mapping[str, bytes]) -> str:
        """Nothing is kept."""
        return name

    def get(self, name: str) -> dict[str, bytes]:
        """A replayed trial's checkpoint, made up from its name, which ends with its examples; one may move to another engine."""
        return {"replay.json": json.dumps({"index": int(name.rsplit("/", 1)[1]) * REPORTS // EXAMPLES}).encode()}

    def remove(self, name: str) -> None:
        """Nothing was kept."""


def loss_at(learning_rate: float, index: int) -> float:
    """The same for either side."""
    import math

    return (math.log10(learning_rate) + 3) ** 2 + 1 / (1 + index)


def make_plan(name: str, trials: int, **search: Any) -> StudyPlan:
    """A study over four dimensions whose trials report five times, the first at a rung; nothing is pruned."""
    spec = SweepSpec.model_validate(
        {
            "schema": 1,
            "name": name,
            "model": "none",
            "data": {"path": "rows.csv", "task": "classify"},
            "training": {"examples": EXAMPLES},
            "space": SPACE,
            "search": {"trials": trials, "pruner": "none", "rungs": [1 / REPORTS], "collapse": {"enabled": False}, **search},
            "evaluate": {"every": EXAMPLES // REPORTS},
            "objective": {"metric": "loss"},
        }
    )
    return plan_study(
        spec, identity=name, spec_document={"name": name}, train_rows=EXAMPLES, chance=None, data_fingerprint="", versions={}
    )


@dataclass
class Timed:
    """A TrialSource that stores how long each question took. Seconds by kind of call; `began` and `ended` bound the whole."""

    inner: TrialSource
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    began: float = 0.0
    ended: float = 0.0
    reports: int = 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is asked or told together shares the time that it takes to keep it."""
        before = {kind: len(values) for kind, values in self.seconds.items()}
        with self.inner.together():
            yield
            since = time.perf_counter()
        took = time.perf_counter() - since
        new = [(values, index) for kind, values in self.seconds.items() for index in range(before.get(kind, 0), len(values))]
        for values, index in new:
            values[index] += took / len(new)
        if len(self.seconds["end"]) > before.get("end", 0):
            self.ended = time.perf_counter()

    def next_trial(self) -> TrialSpec | Wait | Done:
        """Asks."""
        self.began = self.began or time.perf_counter()
        since = time.perf_counter()
        answer = self.inner.next_trial()
        if isinstance(answer, TrialSpec):
            self.seconds["ask"].append(time.perf_counter() - since)
        return answer

    def on_report(self, report: Report) -> Decision:
        """Reports."""
        kind = "progress" if report.kind is ReportKind.PROGRESS else "report"
        self.reports += kind == "report"
        return self._timed(kind, lambda: self.inner.on_report(report))

    def decisions(self) -> list[Decision]:
        """Answers to parked trials."""
        return self.inner.decisions()

    def on_end(self, trial: int, outcome: Outcome) -> None:
        """Ends."""
        self._timed("end", lambda: self.inner.on_end(trial, outcome))
        self.ended = time.perf_counter()

    def _timed(self, kind: str, call: Callable[[], T]) -> T:
        since = time.perf_counter()
        answer = call()
        self.seconds[kind].append(time.perf_counter() - since)
        return answer


@dataclass(frozen=True)
class Controlled:
    """What a run of one side cost: seconds from the first question to the last end, and its trials and reports."""

    seconds: float
    trials: int
    reports: int
    calls: dict[str, float] = field(default_factory=dict)  # median seconds of a call by kind; ours alone


def run_ours(url: str, folder: Path, name: str, trials: int, executor: str, engines: int) -> Controlled:
    """A whole sweep of `trials` trials in the database `url`. `executor` is local, or packed: Ray actors of SLOTS trials each."""
    from sweeper.sweep.listen import Silent
    from sweeper.sweep.source import SweepSource

    plan = make_plan(name, trials)
    with _gateway(url, plan) as gateway, _outbox(gateway, folder):
        source = Timed(SweepSource(gateway, Silent(), _NoDepot()))
        _executor(executor, engines, folder, name).run(source)
        done = sum(state is TrialState.COMPLETE for state in gateway.states().values())
    calls = {kind: median(values) for kind, values in source.seconds.items()}
    return Controlled(source.ended - source.began, done, source.reports, calls)


@dataclass(frozen=True)
class Asks:
    """Median seconds of an ask by finished trials: by TPE, and by the random sampler, which is an ask without Optuna's own part."""

    tpe: dict[int, float]
    random: dict[int, float]
    trial_bytes: float  # of the driver, for each finished trial


def ask_seconds(url: str, name: str, counts: list[int], asks: int = 5) -> Asks:
    """Times asks at so many finished trials.

    The study is filled through the gateway, by a random sampler and with one report a trial, since only their number matters.
    """
    filler = make_plan(name, 10**6, sampler="random")
    found = Asks({}, {}, 0.0)
    sizes: list[tuple[int, int]] = []
    for count in sorted(counts):
        with _gateway(url, filler) as gateway:
            finished = sum(state.is_finished() for state in gateway.states().values())
            sizes.append((finished, own_bytes()))
            taken = [_finish(gateway, reports=1) for _ in range(count - finished)]
            found.random[count] = median(taken[-asks:])
            sizes.append((count, own_bytes()))
        with _gateway(url, resized(filler, sampler="tpe")) as gateway:
            # A trial ends before each of them: what an ask works out of the finished trials would else be worked out once.
            found.tpe[count] = median([_finish(gateway, reports=1) for _ in range(asks)])
    (before, low), (after, high) = max(zip(sizes[::2], sizes[1::2], strict=True), key=lambda pair: pair[1][0] - pair[0][0])
    return replace(found, trial_bytes=(high - low) / max(1, after - before))


def own_bytes() -> int:
    """Bytes that this process alone holds."""
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def _finish(gateway: Gateway, reports: int) -> float:
    """Trains a trial; the seconds of its ask."""
    since = time.perf_counter()
    trial = gateway.next()
    asked = time.perf_counter() - since
    assert isinstance(trial, TrialSpec)
    metrics: dict[str, float] = {}
    for index, nominal in enumerate(trial.evaluations[-reports:]):
        metrics = {"validation/loss": loss_at(float(trial.params["learning_rate"] or 0.0), index)}
        now = time.time_ns() // 1_000_000
        gateway.report(
            Report(trial.number, ReportKind.EVALUATION, nominal, nominal, nominal, now, metrics=metrics, attempt=trial.attempt)
        )
    gateway.end(trial.number, Outcome(Ending.COMPLETED, metrics=metrics, nominal=EXAMPLES, examples=EXAMPLES))
    return asked


class _NoDepot:
    def bring(self, name: str) -> None:
        """Nothing lies elsewhere."""

    def forget(self, name: str) -> None:
        """Nothing was kept."""


@contextmanager
def _gateway(url: str, plan: StudyPlan) -> Iterator[Gateway]:
    gateway = Gateway.open(url, plan, driver="benchmark")
    try:
        yield gateway
    finally:
        gateway.close()


@contextmanager
def _outbox(gateway: Gateway, folder: Path) -> Iterator[None]:
    from sweeper.sweep.outbox import Outbox
    from sweeper.tracking.memory import MemoryTracker

    gateway.ledger.add_event("sweep_started", None, {"spec": {"name": gateway.plan.name}, "tags": {}}, key="sweep_started")
    outbox = Outbox(gateway.ledger, [MemoryTracker()], folder)
    outbox.start()
    try:
        yield
        outbox.drain(60)
    finally:
        outbox.stop()


def _executor(kind: str, engines: int, folder: Path, name: str) -> Any:
    setup, factory = _setup(folder, name), Unstored()
    if kind == "local":
        from sweeper.engine.depot import FolderDepot
        from sweeper.executors.local import LocalExecutor

        return LocalExecutor(replace(setup, slots=SLOTS * engines), FolderDepot(folder / "depot"), factory)
    from sweeper.executors.packed import PackedExecutor

    return PackedExecutor(setup, folder / "depot", ExecutorSpec(workers=engines), factory)


def _setup(folder: Path, name: str) -> EngineSetup:
    """Files of a few bytes: the replaying engine does not read them."""
    for side in ("train", "validation", "model"):
        (folder / side).mkdir(parents=True, exist_ok=True)
        (folder / side / "info.json").write_text("{}")
    return EngineSetup(
        study=name,
        model=str(folder / "model"),
        revision=None,
        trust_remote_code=False,
        train=folder / "train",
        validation=folder / "validation",
        training=TrainingSpec(),
        evaluate=EvaluateSpec(),
        metrics=("loss",),
        objective="loss",
        maximize=False,
        at="last",
        checkpoint_seconds=1e9,
        full_examples=EXAMPLES,
        slots=SLOTS,
    )
