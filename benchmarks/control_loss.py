"""Slot time that control takes, simulated from measured times of its calls.

One driver answers in the order of arrival. A slot waits for it twice: at a rung until the decision is there, and at a trial's end
until the next trial is; other reports cost the driver time but no slot waits for them. Every call takes the median time that was
measured for it, an ask the time at so many finished trials, on the straight lines between the counts measured. Trials differ by a
fifth in length, and begin spread over one.
Does not know where the times come from. Cost: a second.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

GENERATIONS = 4
SPREAD = 0.2


@dataclass(frozen=True)
class Times:
    """Seconds of the driver: an ask by finished trials, a report, an end."""

    ask: Mapping[int, float]
    report: float
    end: float

    def ask_at(self, finished: int) -> float:
        """Between the counts measured; the first or last one outside."""
        counts = sorted(self.ask)
        if finished <= counts[0]:
            return self.ask[counts[0]]
        for low, high in pairwise(counts):
            if finished <= high:
                part = (finished - low) / (high - low)
                return self.ask[low] + part * (self.ask[high] - self.ask[low])
        return self.ask[counts[-1]]


def lost_share(times: Times, slots: int, trial_seconds: float, reports: int, rungs: int = 1) -> float:
    """Share of slot time spent waiting, with `slots` trials running at once, over GENERATIONS trials a slot.

    Of a trial's `reports`, the first `rungs` are rungs. `trial_seconds` is its mean time in training and evaluation.
    """
    chance = random.Random(0)
    lengths = [trial_seconds * chance.uniform(1 - SPREAD, 1 + SPREAD) for _ in range(slots)]
    # (time, slot, index of the report that comes): -1 asks for a trial
    events = [(chance.uniform(0, trial_seconds), slot, -1) for slot in range(slots)]
    heapq.heapify(events)
    free = waited = trained = 0.0
    finished = 0
    while events and finished < GENERATIONS * slots:
        now, slot, index = heapq.heappop(events)
        if index == reports - 1:
            service = times.report + times.end + times.ask_at(finished)
            finished += 1
            trained += lengths[slot]
        else:
            service = times.ask_at(finished) if index < 0 else times.report
        done = max(now, free) + service
        free = done
        stays = 0 <= index < reports - 1 and index >= rungs  # trains on meanwhile
        waited += 0.0 if stays else done - now
        follows = 0 if index in (-1, reports - 1) else index + 1
        heapq.heappush(events, ((now if stays else done) + lengths[slot] / reports, slot, follows))
    return waited / (waited + trained) if trained else 1.0
