"""Which trials work in the next piece: whole chunks under a token budget. Decides and returns a record; the engine obeys.

Each trial in a slot is in one phase:

        add            offer(chunk sizes)                       evaluate()
    ────────> IDLE ───────────────────────> TRAINING ──> IDLE ─────────────> EVALUATING ──> IDLE
                                                                              park() <──> unpark()

A piece is one micro-step of training (chunks of as many trials as fit) or a part of one trial's evaluation. The trial that was
served longest ago comes first. A trial's chunks go in order, and are never cut here: what a trial computes must not depend
on its neighbours. A chunk over the budget goes alone.
Knows nothing of torch, rows or losses. `schedule` costs microseconds for a handful of trials.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


class Phase(enum.Enum):
    """What a trial in a slot waits for: IDLE the engine, TRAINING its turn, EVALUATING its turn, PARKED a decision."""

    IDLE = "idle"
    TRAINING = "training"
    EVALUATING = "evaluating"
    PARKED = "parked"


@dataclass(frozen=True)
class Schedule:
    """The next piece: chunks to train together as (trial, index of its chunk), or one trial to evaluate, or nothing."""

    chunks: tuple[tuple[int, int], ...] = ()
    evaluate: int | None = None

    def __bool__(self) -> bool:
        return bool(self.chunks) or self.evaluate is not None


@dataclass
class _Entry:
    phase: Phase = Phase.IDLE
    chunks: deque[tuple[int, int]] = field(default_factory=deque)  # (index, tokens), not yet scheduled


class Scheduler:
    """Phases of the trials in slots, and whose turn it is."""

    def __init__(self, token_budget: int) -> None:
        if token_budget < 1:
            raise ValueError(f"token_budget is {token_budget}, but must be >= 1")
        self._budget = token_budget
        self._entries: dict[int, _Entry] = {}  # in the order of turns: the first was served longest ago

    def add(self, trial: int) -> None:
        """A trial entered a slot. Raises ValueError if it is in one already."""
        if trial in self._entries:
            raise ValueError(f"trial {trial} is in a slot already")
        self._entries[trial] = _Entry()

    def remove(self, trial: int) -> None:
        """The trial left its slot."""
        del self._entries[trial]

    def phase(self, trial: int) -> Phase:
        """The trial's phase."""
        return self._entries[trial].phase

    def trials(self) -> list[int]:
        """Numbers of the trials in slots, parked ones included, in rising order."""
        return sorted(self._entries)

    def offer(self, trial: int, sizes: Sequence[int]) -> None:
        """The trial's next batch, as tokens of each chunk."""
        entry = self._entries[trial]
        if entry.chunks or not sizes:
            raise ValueError(f"trial {trial} offers {len(sizes)} chunks while {len(entry.chunks)} are left")
        entry.phase = Phase.TRAINING
        entry.chunks.extend(enumerate(sizes))

    def withdraw(self, trial: int) -> None:
        """Takes back what is left of the trial's batch."""
        self._entries[trial].chunks.clear()
        self._entries[trial].phase = Phase.IDLE

    def halve(self) -> None:
        """Half the tokens a micro-step from now on; a chunk over the budget still goes alone."""
        self._budget = max(1, self._budget // 2)

    def evaluate(self, trial: int) -> None:
        """The trial is to be evaluated next, piece by piece, until its phase changes."""
        self._entries[trial].phase = Phase.EVALUATING

    def park(self, trial: int) -> None:
        """The trial waits for a decision."""
        self._entries[trial].phase = Phase.PARKED

    def unpark(self, trial: int) -> None:
        """The trial may go on; IDLE until the engine says with what."""
        self._entries[trial].phase = Phase.IDLE

    def schedule(self) -> Schedule:
        """The next piece; falsy if every trial is parked or there is none. What it names counts as served."""
        for trial, entry in self._entries.items():
            if entry.phase is Phase.EVALUATING:
                self._served([trial])
                return Schedule(evaluate=trial)
            if entry.phase is Phase.TRAINING:
                return self._pack()
        return Schedule()

    def _pack(self) -> Schedule:
        """One chunk of each trial in turn, again and again, while they fit."""
        chosen: list[tuple[int, int]] = []
        room = self._budget
        open_trials = [trial for trial, entry in self._entries.items() if entry.phase is Phase.TRAINING]
        while open_trials:
            still: list[int] = []
            for trial in open_trials:
                entry = self._entries[trial]
                index, tokens = entry.chunks[0]
                if tokens > room and chosen:
                    continue
                entry.chunks.popleft()
                chosen.append((trial, index))
                room -= tokens
                if entry.chunks:
                    still.append(trial)
                else:
                    entry.phase = Phase.IDLE
            open_trials = still
        self._served(dict.fromkeys(trial for trial, _ in chosen))
        return Schedule(chunks=tuple(chosen))

    def _served(self, trials: Sequence[int] | dict[int, None]) -> None:
        for trial in trials:
            self._entries[trial] = self._entries.pop(trial)
