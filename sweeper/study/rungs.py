"""The clocks of a trial: when it is evaluated, and at which evaluations the pruner decides.

All are nominal examples of the study's largest budget, so that trials with different batch sizes are compared at the same
points. Does not know what is measured there. Costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

EVALUATIONS = 10
"""Evaluations in a full budget unless the spec says otherwise."""

_SNAP = 0.05


def default_every(full: int) -> int:
    """Examples between evaluations, so that there are at most ten in `full`, the last at its end."""
    return max(1, math.ceil(full / EVALUATIONS))


def study_rungs(shares: Sequence[float], full: int, every: int) -> tuple[int, ...]:
    """Rungs of a study in nominal examples: shares of `full`.

    One within a twentieth of `every` of an evaluation moves there, so that rounding does not cost an evaluation. Shares so
    small that they fall on the same example are one rung; none lies at the end.
    """
    rungs = set()
    for share in shares:
        rung = max(1, round(share * full))
        nearest = round(rung / every) * every
        if nearest and abs(nearest - rung) <= _SNAP * every:
            rung = nearest
        if rung < full:
            rungs.add(rung)
    return tuple(sorted(rungs))


def clock(examples: int, every: int, rungs: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Evaluations and rungs of a trial of `examples`: multiples of `every` and rungs below its end, and its end (no rung)."""
    reached = tuple(rung for rung in sorted(set(rungs)) if rung < examples)
    evaluations = sorted({*range(every, examples, every), *reached, examples})
    return tuple(evaluations), reached
