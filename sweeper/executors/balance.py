"""Which trial to move to another engine, once nothing is left to hand out and some engines still have more to do than others.

Engines of one sweep share out their device among the trials inside, so the sweep ends when the engine with the most left does. A
move takes a trial with its checkpoint to the engine with the least left; there it goes on as if never moved, bit for bit.
The work of an engine counts as the sum of what its trials have left: right past the knee, and below it a move costs little anyway.
Does not know Ray, how a trial is moved, or what an example costs. Cost: microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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


def best_move(loads: Sequence[Load]) -> tuple[int, int] | None:
    """The trial to move and the index of the engine that it goes to; None where no move is worth its cost."""
    roomy = [index for index, load in enumerate(loads) if load.free > 0]
    if not roomy:
        return None
    target = min(roomy, key=lambda index: (loads[index].examples, index))
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
