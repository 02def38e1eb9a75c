"""What an engine is given, and how an executor drives it.

One engine lives on one device and trains the trials in its slots; an executor (in process, or inside a Ray actor) calls it
from one thread:

    while engine.available() and (trial := source.next_trial()) is a TrialSpec: engine.admit(trial)
    for event in engine.step(): ...            # a bounded piece of work: one micro-step or a part of an evaluation
    for ended in engine.decide(decision): ...  # the answers

Does not know: who drives it, what a study is, where the depot keeps its files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sweeper.records import Decision, Outcome, Report, TrialSpec
from sweeper.spec.models import EvaluateSpec, TrainingSpec


@dataclass(frozen=True)
class EngineSetup:
    """Everything that a study's engines have in common; picklable, and free of the driver's home."""

    study: str
    model: str  # local folder (safetensors) or hub id
    revision: str | None
    trust_remote_code: bool
    train: Path  # folder of a TokenSet
    validation: Path
    training: TrainingSpec  # resolved: dtype fp32 or bf16, max_length and chunk_tokens are numbers
    evaluate: EvaluateSpec
    metrics: tuple[str, ...]  # names from spec.metrics or package.module:function; all are computed at every evaluation
    objective: str  # the first metric of the objective; for at: best
    maximize: bool
    at: str  # last or best
    checkpoint_seconds: float
    full_examples: int  # the study's largest budget, for the evaluation rows' share
    rungs: int = 1  # rungs in that budget, for the same
    largest_rank: int | None = None  # that any trial of the study may have; None: training.rank
    largest_dropout: float | None = None  # likewise; None: training.dropout
    searched_targets: tuple[str, ...] = ()  # that trials may have besides training.targets
    slots: int = 1  # 0: as many as the measurement at the engine's start says (see Capacity)
    micro_tokens: int | None = None  # tokens at most that share one pass; None: the measured knee, or chunk_tokens without one
    chunk_tokens: int | None = None  # fewer than training's, where memory did not suffice for those
    memory: int | None = None  # bytes that an engine may take; None: what is free on its device
    prefix_bytes: int | None = None  # that states of frozen layers may take on the node's disk; None: a fifth of what is free
    deterministic: bool = False  # pieces of work end by count, never by the clock
    threads: int = 1
    device: str = "cpu"
    worker: str = "local"
    base_name: str = ""  # what an exported adapter calls its base: the user's own name for it, not a worker's copy; default: model


@dataclass(frozen=True)
class Capacity:
    """What an engine found at its start: how many trials share its model, and how many tokens share one pass.

    `gain` is the measured throughput of `slots` trials together over the same trials one after another; `reason` says in one
    sentence for people why it is so many. `steady` is False where a trial's numbers were promised not to depend on its neighbours
    (CPU, fp32, one thread), but this processor's matrix products do not keep it.
    """

    slots: int
    micro_tokens: int
    gain: float = 1.0
    reason: str = ""
    steady: bool = True


@dataclass(frozen=True)
class Ended:
    """A trial left its slot."""

    trial: int
    outcome: Outcome


Event = Report | Ended


class Engine(Protocol):
    """One device's trials. Not thread-safe."""

    def capacity(self) -> Capacity:
        """Slots in all and tokens that share a pass, as the setup says or as measured at the start."""
        ...

    def available(self) -> int:
        """Free slots."""
        ...

    def admit(self, trial: TrialSpec) -> None:
        """Puts a trial into a free slot; from its checkpoint where it has one.

        Raises TrialError if it cannot be started, MemoryError where memory has no room for it beside the others.
        """
        ...

    def trials(self) -> list[int]:
        """Numbers of the trials in slots, parked ones included."""
        ...

    def step(self) -> list[Event]:
        """Does one bounded piece of work (one pass over chunks of several trials, training or evaluating) and says what came of it.

        A PROGRESS report of each trial comes at least every 2 s or every piece, whichever is longer; by count of pieces where the
        setup is deterministic. After a RUNG report the
        trial is parked until `decide` is called for it. With all trials parked, or no trial, it returns [] at once.
        A trial that fails by itself (NaN, exploding loss) is an Ended with FAILED; nothing that a trial does raises here. What is
        no trial's fault does: ResourceError where the depot takes no more files, ModelError or DataError for a broken set-up.
        """
        ...

    def decide(self, decision: Decision) -> list[Ended]:
        """Carries out CONTINUE (un-parks), STOP (ends PRUNED), PAUSE (checkpoint, ends PAUSED) or LATER (stays parked)."""
        ...

    def preempt(self) -> list[Ended]:
        """Checkpoints every trial and frees all slots; they end PREEMPTED with their checkpoint."""
        ...

    def close(self) -> None:
        """Lets go of the model and its memory."""
        ...
