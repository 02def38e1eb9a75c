"""Which trial to move to another engine, once nothing is left to hand out and some engines still have more to do than others.

Engines of one sweep share out their device among the trials inside, so the sweep ends when the engine with the most left does. A
move takes a trial with its checkpoint to the engine with the least left; there it goes on as if never moved, bit for bit.
The work of an engine counts as the sum of what its trials have left: right past the knee, and below it a move costs little anyway.
To the source a trial that moves is one stay: `Moves` keeps what it cost before, and adds it to what is told of it later.
Does not know Ray, how a trial is moved, or what an example costs. Cost: microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from sweeper.engine.base import Ended, Event
from sweeper.records import Ending, Outcome, Report

LEAST_PART = 0.15
"""A move shortens what is left by so much at least: a batch, and at worst an evaluation, is done again."""

LEAST_OF_TRIAL = 0.1
"""And by so much of the moved trial's whole budget."""


@dataclass(frozen=True)
class Left:
    """What a trial still has to train, and its whole budget, in examples."""

    examples: int
    whole: int


@dataclass(frozen=True)
class Load:
    """One engine: free slots, trials that may leave it now, and the examples that its other trials have left."""

    free: int
    movable: Mapping[int, Left] = field(default_factory=dict)
    staying: int = 0

    @property
    def examples(self) -> int:
        """Left to train in this engine."""
        return self.staying + sum(left.examples for left in self.movable.values())


def emptiest(loads: Sequence[Load]) -> int | None:
    """The index of the engine with a free slot that has the least left; None where all are full."""
    roomy = [index for index, load in enumerate(loads) if load.free > 0]
    return min(roomy, key=lambda index: (loads[index].examples, index), default=None)


def best_move(loads: Sequence[Load]) -> tuple[int, int] | None:
    """The trial to move and the index of the engine that it goes to; None where no move is worth its cost."""
    target = emptiest(loads)
    if target is None:
        return None
    fullest = max(loads, key=lambda load: load.examples)
    least, most = loads[target].examples, fullest.examples

    def after(trial: int) -> int:
        moved = fullest.movable[trial].examples
        return max(most - moved, least + moved)

    trial = min(fullest.movable, key=lambda number: (after(number), number), default=None)
    if trial is None:
        return None
    gained = most - after(trial)
    worth = gained >= max(LEAST_PART * most, LEAST_OF_TRIAL * fullest.movable[trial].whole) and gained > 0
    return (trial, target) if worth else None


@dataclass(frozen=True)
class _Cost:
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    tokens: int = 0


_Told = TypeVar("_Told", Report, Outcome)


class Moves:
    """Trials that are under way from one engine to another, and what the stays of moved trials have cost so far."""

    def __init__(self) -> None:
        self.moving: set[int] = set()
        self._before: dict[int, _Cost] = {}

    def is_move(self, event: Ended) -> bool:
        """Whether this end is a trial leaving for another engine, and so none."""
        outcome = event.outcome
        return event.trial in self.moving and outcome.ending is Ending.PAUSED and outcome.checkpoint is not None

    def whole(self, event: Event) -> Event:
        """`event` with the costs of earlier stays in its own."""
        if isinstance(event, Report):
            return self._add(event, event.trial)
        return replace(event, outcome=self._add(event.outcome, event.trial))

    def left(self, event: Ended) -> None:
        """A trial has left for another engine; `event` is whole."""
        outcome = event.outcome
        self._before[event.trial] = _Cost(outcome.train_seconds, outcome.evaluate_seconds, outcome.tokens)
        self.moving.discard(event.trial)

    def ended(self, trial: int) -> None:
        """The source was told of its end."""
        self.moving.discard(trial)
        self._before.pop(trial, None)

    def _add(self, told: _Told, trial: int) -> _Told:
        before = self._before.get(trial)
        if before is None:
            return told
        return replace(
            told,
            train_seconds=told.train_seconds + before.train_seconds,
            evaluate_seconds=told.evaluate_seconds + before.evaluate_seconds,
            tokens=told.tokens + before.tokens,
        )
