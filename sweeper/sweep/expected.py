"""What a run was expected to take, and what it took, as the ledger keeps it.

Does not know how a forecast is made. Costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.sweep.forecast.forecast import Range, read_range

FORECAST, TOOK = "forecast", "took"
"""Kinds of events. The first of a run, made at its start or as soon as there was something to tell it from; and the truth."""


@dataclass(frozen=True)
class Expected:
    """A run's first forecast of its seconds, and what it took; None while it runs, or where it was interrupted."""

    seconds: Range
    after: float  # seconds that the run was old
    source: str  # probe, study or reports: what the speed was known from
    took: float | None = None


def expected(forecasts: Sequence[Mapping[str, Any]], truths: Sequence[Mapping[str, Any]]) -> Expected | None:
    """The last run's, of the ledger's events, oldest first."""
    for payload in reversed(forecasts):
        seconds = read_range(payload.get("seconds"))
        if seconds is not None:
            took = next((truth.get("seconds") for truth in truths if truth.get("term") == payload.get("term")), None)
            return Expected(seconds, float(payload.get("after") or 0), str(payload.get("source") or ""), took)
    return None
