"""Learning-rate schedules over a trial's own full budget, whatever rung it is stopped at.

The formulas are those of transformers' `get_*_schedule_with_warmup`, so that a configuration means the same in its Trainer:
with warm-up the first step has rate 0. Knows nothing of optimizers; a call costs nothing.
"""

from __future__ import annotations

import math

SCHEDULES = ("constant", "linear", "cosine")


def total_steps(examples: int, batch_size: int) -> int:
    """Optimizer steps of a budget of `examples`; the last batch may be smaller."""
    return -(-examples // batch_size)


def factor(schedule: str, step: int, total: int, warmup: float) -> float:
    """What the learning rate is multiplied with at optimizer step `step` (from 0) of `total`.

    `warmup` is a share of `total`, rounded up to whole steps. Raises ValueError for a schedule that is not in SCHEDULES.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; allowed: {', '.join(SCHEDULES)}")
    warm = math.ceil(total * warmup)
    if step < warm:
        return step / max(1, warm)
    if schedule == "constant":
        return 1.0
    progress = (step - warm) / max(1, total - warm)
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
