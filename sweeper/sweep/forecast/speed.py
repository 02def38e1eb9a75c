"""How fast a machine does a study's work, in plain numbers: what a simulated engine needs in place of a real one.

Does not know how the numbers came about. Costs nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

PROBE_SPREAD = 0.15
"""Standard deviation of a sweep's true speed around the probed one, relative: other neighbours, other lengths, a warmer chip.
Probes of one configuration on one machine, hours apart, differ by 10 %; sweeps differ from their probes by more."""

OBSERVED_SPREAD = 0.06
"""The same where the speed was observed in this very sweep."""


class PassTimes(Protocol):
    """Seconds of one training pass, optimizer steps included."""

    def seconds(self, tokens: float) -> float:
        """Of a pass over so many tokens, whoever's they are."""
        ...


class Passes:
    """Pass times between measured points (tokens, seconds), straight lines in between and beyond the last; never falling.

    Below the first point a pass costs what the line through the first two says, but never less than nothing; of a single
    point time is proportional to tokens. Raises ValueError without points.
    """

    def __init__(self, points: Iterable[tuple[float, float]]) -> None:
        merged: dict[float, float] = {}
        for tokens, seconds in points:
            merged[float(tokens)] = max(seconds, merged.get(float(tokens), 0.0))
        if not merged or min(merged) <= 0:
            raise ValueError(f"the points are {sorted(merged.items())}, but at least one with tokens above 0 is needed")
        found: list[tuple[float, float]] = []
        for tokens, seconds in sorted(merged.items()):
            found.append((tokens, max(seconds, found[-1][1] if found else 0.0)))
        self.points = tuple(found)

    def seconds(self, tokens: float) -> float:
        """See PassTimes."""
        if len(self.points) == 1:
            return self.points[0][1] * tokens / self.points[0][0]
        at = min(max(1, bisect_left(self.points, (tokens, 0.0))), len(self.points) - 1)
        (left, low), (right, high) = self.points[at - 1], self.points[at]
        line = low + (tokens - left) * (high - low) / (right - left)
        # Never cheaper a token than at the measured point: a line with a steep start would make small passes free.
        return max(line, 0.0) if tokens >= self.points[0][0] else max(line, self.points[0][1] * tokens / self.points[0][0])


@dataclass(frozen=True)
class Speed:
    """What one engine does in which time, and how many engines there are. Seconds, tokens, rows."""

    passes: PassTimes
    read_seconds: float  # a validation row
    row_tokens: float  # mean of a training row
    between_rows: int  # validation rows of an evaluation between rungs
    full_rows: int  # at a rung, and at the end
    chunk_tokens: int  # what a trial's batch is cut by
    micro_tokens: int  # tokens that may share a pass
    slots: int = 1  # trials that share one engine
    engines: int = 1
    start_seconds: float = 0.0  # until the first trial trains: cluster, workers, model
    turn_seconds: float = 0.0  # of an engine for each trial: admitting it, its checkpoints, its export
    wait: float = 1.0  # seconds that go by for each second of work: what else the machine does
    spread: float = PROBE_SPREAD

    def chunks(self, batch: int) -> int:
        """Chunks that a batch of so many rows is cut into."""
        return math.ceil(batch / max(1, int(self.chunk_tokens // self.row_tokens)))

    def pass_tokens(self, batch: int) -> float:
        """Tokens of one chunk of such a batch: what a lone trial has in a pass."""
        return batch * self.row_tokens / self.chunks(batch)


def speed_facts(speed: Speed) -> dict[str, object]:
    """What of a Speed was measured, as JSON values; the rest is the spec's and the machine's."""
    points = speed.passes.points if isinstance(speed.passes, Passes) else ()
    measured = {name: getattr(speed, name) for name in _MEASURED}
    return {"points": [list(point) for point in points], **measured}


def with_facts(frame: Speed, facts: Mapping[str, object]) -> Speed | None:
    """`frame` with what `speed_facts` kept; None where that is another version's, or nobody's."""
    try:
        points = [(float(tokens), float(seconds)) for tokens, seconds in facts["points"]]  # type: ignore[attr-defined]
        kept = {name: kind(facts[name]) for name, kind in _MEASURED.items()}
        return replace(frame, passes=Passes(points), spread=PROBE_SPREAD, **kept)
    except (KeyError, TypeError, ValueError):
        return None


_MEASURED: dict[str, Callable[[Any], Any]] = {
    "read_seconds": float,
    "start_seconds": float,
    "turn_seconds": float,
    "slots": int,
    "micro_tokens": int,
}
