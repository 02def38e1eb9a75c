"""Seeds made from numbers, so that no random state is carried along.

Every draw of a trial (initial weights, data order, a dropout mask) has a seed of its own, mixed from the trial's seed and the
place of the draw. So a resumed trial, a recomputed layer and a trial in another slot draw the same numbers. Costs nothing.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1


def mix(*parts: int) -> int:
    """A seed in [0, 2**63) from any integers, by splitmix64 (Steele et al. 2014) over the parts in order."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ (part & _MASK)) & _MASK
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1
