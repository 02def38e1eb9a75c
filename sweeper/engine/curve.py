"""Seconds of a pass against its tokens, as measured on one device for one model: what packing, plans and forecasts are made of.

Does not know how it was measured (`knee.py`), slots or memory; no torch. Costs nothing.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

FORMAT = 3
NEAR = 0.05  # of the plateau


@dataclass(frozen=True)
class Curve:
    """`points`: (tokens, seconds of a pass), tokens rising; at least one."""

    points: tuple[tuple[int, float], ...]

    @property
    def plateau(self) -> float:
        """The largest throughput, tokens a second."""
        return max(tokens / seconds for tokens, seconds in self.points)

    @property
    def knee(self) -> int:
        """Fewest measured tokens whose throughput is within 5 % of the plateau."""
        return next(tokens for tokens, seconds in self.points if tokens / seconds >= (1 - NEAR) * self.plateau)

    @property
    def limit(self) -> int:
        """Most measured tokens whose throughput is within 5 % of the plateau: a pass of more is no faster, or slower."""
        return max(tokens for tokens, seconds in self.points if tokens / seconds >= (1 - NEAR) * self.plateau)

    def seconds(self, tokens: float) -> float:
        """Of a pass: between two points on the straight line; below the first as the first (a pass has a floor), past the last
        at the last one's throughput. Raises ValueError for less than no tokens."""
        if tokens < 0:
            raise ValueError(f"tokens is {tokens}, but must be >= 0")
        sizes = [size for size, _ in self.points]
        place = bisect_left(sizes, tokens)
        if place == 0:
            return self.points[0][1]
        if place == len(sizes):
            return self.points[-1][1] * tokens / sizes[-1]
        (a, before), (b, after) = self.points[place - 1 : place + 1]
        return before + (after - before) * (tokens - a) / (b - a)

    def throughput(self, tokens: float) -> float:
        """Tokens a second in passes of `tokens` tokens."""
        return tokens / self.seconds(tokens)

    def to_json(self) -> str:
        """As a JSON document."""
        return json.dumps({"format": FORMAT, "points": self.points})

    @classmethod
    def from_json(cls, text: str) -> Curve:
        """The curve in `text`. Raises ValueError if there is none."""
        try:
            raw = json.loads(text)
            points = tuple((int(tokens), float(seconds)) for tokens, seconds in raw["points"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no curve: {error}") from error
        rising = all(a < b for (a, _), (b, _) in pairwise(points))
        if raw.get("format") != FORMAT or not points or not rising or any(size < 1 or not took > 0 for size, took in points):
            raise ValueError("this is no curve: its points are not rising tokens with seconds above 0, or another version's")
        return cls(points)
