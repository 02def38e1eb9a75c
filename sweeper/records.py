"""Frozen records and small protocols that cross layers.

Purpose: the one vocabulary that study, engine, executors, tracking and sweep share, so that none of them imports another.
Does not know: Optuna, Ray, torch, MLflow, or how anything is stored.
Cost: plain dataclasses; building one takes microseconds.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

ParamValue = float | int | str | bool | None


class TrialState(enum.StrEnum):
    """The truth about a trial's state, kept nowhere else.

        WAITING ──> RUNNING <──> PARKED          PARKED: at a rung, holding its slot until a decision comes
           ^         │ │ │ │
           │         │ │ │ └──> COMPLETE         full budget reached; its value is that of the full budget
           │         │ │ └────> PRUNED           stopped early on purpose; its intermediate values stay
           │         │ └──────> FAIL             NaN, exploding loss, a crash, out of memory; with a reason
           │         └────────> PAUSED           checkpoint written, slot freed; stays until continued
           └── interrupted ──────┘               Ctrl-C, a lost worker: WAITING again, from the last checkpoint

    In Optuna's database PARKED is RUNNING and PAUSED is WAITING; the other five are the same word.
    """

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    PARKED = "PARKED"
    PAUSED = "PAUSED"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"

    def is_finished(self) -> bool:
        """Whether the trial will never train again."""
        return self in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class TrialSpec:
    """What an executor trains: one configuration with its budget and clocks.

    `examples`, `evaluations` and `rungs` count training examples seen (a row seen twice counts twice). Evaluations and rungs
    are *nominal* examples of the study's largest budget: a trial reports at its first optimizer step at or past one, under the
    nominal number, which is Optuna's `step`. `rungs` is a subset of `evaluations`; the last evaluation is the trial's own
    full budget.
    """

    study: str
    number: int
    params: Mapping[str, ParamValue]  # every searchable key of training, resolved
    seed: int
    examples: int
    evaluations: tuple[int, ...]
    rungs: tuple[int, ...]
    resume_from: str | None = None  # checkpoint name in the depot
    attempt: int = 0  # how often the trial was started before


@dataclass(frozen=True)
class Wait:
    """No trial now; ask again after the next event."""


@dataclass(frozen=True)
class Done:
    """No trial ever again."""

    reason: str = ""


class ReportKind(enum.StrEnum):
    """PROGRESS renews the lease; EVALUATION carries validation metrics; RUNG as well, and asks for a decision."""

    PROGRESS = "progress"
    EVALUATION = "evaluation"
    RUNG = "rung"


@dataclass(frozen=True)
class Report:
    """What a worker says of one trial. Times are Unix milliseconds, durations are seconds since the trial was admitted."""

    trial: int
    kind: ReportKind
    nominal: int  # examples of the evaluation clock; for PROGRESS the true examples
    examples: int  # true examples seen
    step: int  # optimizer steps taken
    time_ms: int
    metrics: Mapping[str, float] = field(default_factory=dict)  # "validation/loss", "train/loss", "train/learning_rate", ...
    attempt: int = 0
    outcomes: str | None = None  # parquet part in the depot: row id, label scores or loss and tokens, prediction
    checkpoint: str | None = None  # checkpoint name in the depot, written before this report was sent
    rows: int = 0  # validation rows read
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    tokens: int = 0
    worker: str = ""


class Action(enum.StrEnum):
    """The answer to a report. LATER keeps the trial parked in its slot until `decisions()` names it."""

    CONTINUE = "continue"
    STOP = "stop"
    PAUSE = "pause"
    LATER = "later"


@dataclass(frozen=True)
class Decision:
    """What is to happen to one trial, and the evidence for it (value, rung, cut-off, rank, those compared with)."""

    trial: int
    action: Action
    reason: str = ""
    evidence: Mapping[str, object] = field(default_factory=dict)


class Ending(enum.StrEnum):
    """How a stay of a trial in an executor ended. PAUSED and PREEMPTED trials come back; the others are finished."""

    COMPLETED = "completed"
    PRUNED = "pruned"
    FAILED = "failed"
    PAUSED = "paused"
    PREEMPTED = "preempted"

    def state(self) -> TrialState:
        """The trial state this ending leads to."""
        return _STATE_AFTER[self]


_STATE_AFTER = {
    Ending.COMPLETED: TrialState.COMPLETE,
    Ending.PRUNED: TrialState.PRUNED,
    Ending.FAILED: TrialState.FAIL,
    Ending.PAUSED: TrialState.PAUSED,
    Ending.PREEMPTED: TrialState.WAITING,
}


@dataclass(frozen=True)
class Outcome:
    """How a stay ended, and where its results lie.

    `metrics` of a COMPLETED trial are those its value is taken from: of the full budget (`objective.at: last`) or of the best
    evaluation (`best`); `adapter` is what exactly those were measured on.
    """

    ending: Ending
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    nominal: int = 0
    examples: int = 0
    adapter: str | None = None  # folder in the depot, PEFT format (LoRA) or a model folder (full)
    checkpoint: str | None = None
    outcomes: str | None = None
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    tokens: int = 0
    worker: str = ""


class TrialSource(Protocol):
    """Where an executor's trials come from and where its news goes. All calls come from one thread; none blocks for long."""

    def together(self) -> AbstractContextManager[None]:
        """Inside it, what is asked and told is kept at once, when it is left: nothing that the source answered may be acted on
        before. If leaving it raises, none of it was asked or told."""
        ...

    def next_trial(self) -> TrialSpec | Wait | Done:
        """The next trial to train; Wait: nothing now, ask after the next event; Done: never again."""
        ...

    def on_report(self, report: Report) -> Decision:
        """Takes a report and answers at once: CONTINUE, STOP, PAUSE, or LATER (the trial stays parked in its slot)."""
        ...

    def decisions(self) -> list[Decision]:
        """Answers to parked trials, and steering; asked after every event and at least every 2 s."""
        ...

    def on_end(self, trial: int, outcome: Outcome) -> None:
        """The trial left the executor. Idempotent."""
        ...


class Executor(Protocol):
    """Where trials run. Control is inverted, so that Ray Tune, which owns its own loop, fits as well as ours."""

    def run(self, trials: TrialSource) -> None:
        """Trains until the source is Done and every trial has ended. On KeyboardInterrupt every running trial ends PREEMPTED."""
        ...


@runtime_checkable
class Depot(Protocol):
    """Where a worker's files outlive it: adapters, checkpoints, outcome parts. Names are relative, with forward slashes."""

    def put(self, name: str, files: Mapping[str, bytes]) -> str:
        """Stores `files` as the folder `name`, whole or not at all (written aside, then renamed); returns `name`."""
        ...

    def get(self, name: str) -> dict[str, bytes]:
        """The files of folder `name`. Raises FileNotFoundError."""
        ...

    def remove(self, name: str) -> None:
        """Removes folder `name`; no error if it is not there."""
        ...


class Verdict(enum.StrEnum):
    """What a comparison of two configurations on the same rows allows to say."""

    BETTER = "better"
    NO_BETTER = "no better"
    WORSE = "worse"


@dataclass(frozen=True)
class Comparison:
    """Two trials on the same validation rows: `difference` is `other` minus `base`, with a paired 95 % interval."""

    metric: str
    base_trial: int
    other_trial: int
    base: float
    other: float
    difference: float
    low: float
    high: float
    rows: int
    verdict: Verdict
