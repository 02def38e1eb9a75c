"""Which trials work in the next piece: whole chunks under a budget. Decides and returns a record; the engine obeys.

Each trial in a slot is in one phase:

        add             offer(chunk sizes, work)         its last chunk is scheduled, or withdraw
    ────────> WAITING ───────────────────────> RUNNING ───────────────────────────────────────> WAITING
                 ^ │ park                         │
          unpark │ v                              │ park: what was offered is withdrawn
                PARKED <──────────────────────────┘

WAITING waits for the engine to offer its next batch or evaluation; RUNNING for its turn; PARKED for a decision, holding its slot.
A paused trial, like a finished one, has left its slot: it is removed here, and added again when it goes on, here or elsewhere.

A piece is one pass over chunks of as many trials as fit, all of one kind of work: training, reading rows (losses or label
scores), or decoding. Promises, each tested over random histories:
- a chunk is never cut: what a trial computes must not depend on its neighbours;
- a trial's chunks go in order, each exactly once;
- a piece stays within the token budget and the row budget; a chunk over either goes alone;
- the trial that was served longest ago comes first, and its work is the piece's. So no RUNNING trial waits for more pieces than
  there are other trials in slots, and training and evaluation take turns by who was served longest ago;
- a parked trial is never served; a secluded one is alone in its pieces until what it offered is done or withdrawn.
Knows nothing of torch, rows or losses, nor of a clock: the same calls give the same schedules, so whoever simulates an engine
drives this very class. `schedule` costs microseconds for a handful of trials.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


class Phase(enum.Enum):
    """What a trial in a slot waits for; the life cycle is drawn above."""

    WAITING = "waiting"
    RUNNING = "running"
    PARKED = "parked"


class Work(enum.Enum):
    """What a pass does with its chunks."""

    TRAIN = "train"
    READ = "read"
    DECODE = "decode"


@dataclass(frozen=True)
class Schedule:
    """The next piece: chunks to do together as (trial, place of the chunk in what it offered); none if there is nothing to do."""

    chunks: tuple[tuple[int, int], ...] = ()
    work: Work = Work.TRAIN

    def __bool__(self) -> bool:
        return bool(self.chunks)

    def trials(self) -> list[int]:
        """Whose chunks these are, each named once."""
        return list(dict.fromkeys(trial for trial, _ in self.chunks))


@dataclass(frozen=True)
class _Chunk:
    place: int
    tokens: int
    rows: int


@dataclass
class _Entry:
    phase: Phase = Phase.WAITING
    work: Work = Work.TRAIN
    chunks: deque[_Chunk] = field(default_factory=deque)  # not yet scheduled
    secluded: bool = False


class Scheduler:
    """Phases of the trials in slots, and whose turn it is. `row_budget` None: no bound but the tokens'."""

    def __init__(self, token_budget: int, row_budget: int | None = None) -> None:
        if token_budget < 1 or (row_budget is not None and row_budget < 1):
            raise ValueError(f"the budgets are {token_budget} tokens and {row_budget} rows, but must be >= 1")
        self._budget = token_budget
        self._row_budget = row_budget
        self._entries: dict[int, _Entry] = {}  # in the order of turns: the first was served longest ago

    @property
    def token_budget(self) -> int:
        """Tokens of a piece, unless a single chunk has more."""
        return self._budget

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

    def offer(self, trial: int, sizes: Sequence[int], work: Work = Work.TRAIN, rows: Sequence[int] | None = None) -> None:
        """The trial's next batch or evaluation, as tokens (and rows, one each unless given) of each chunk.

        Raises ValueError if it offers nothing, still has chunks left, or is parked.
        """
        entry = self._entries[trial]
        if entry.phase is not Phase.WAITING or not sizes:
            raise ValueError(f"trial {trial} is {entry.phase.value} with {len(entry.chunks)} chunks left and offers {len(sizes)}")
        counts = [1] * len(sizes) if rows is None else rows
        entry.phase, entry.work = Phase.RUNNING, work
        entry.chunks.extend(_Chunk(i, tokens, count) for i, (tokens, count) in enumerate(zip(sizes, counts, strict=True)))

    def seclude(self, trial: int) -> None:
        """What the RUNNING trial has offered shares no piece with other trials; what it offers next does again."""
        self._entries[trial].secluded = self._entries[trial].phase is Phase.RUNNING

    def withdraw(self, trial: int) -> None:
        """Takes back what is left of the trial's offer."""
        self._entries[trial].chunks.clear()
        self._wait(self._entries[trial])

    def halve(self) -> None:
        """Half the budgets from now on; a chunk over them still goes alone."""
        self._budget = max(1, self._budget // 2)
        if self._row_budget is not None:
            self._row_budget = max(1, self._row_budget // 2)

    def park(self, trial: int) -> None:
        """The trial waits for a decision; what it offered is withdrawn."""
        self.withdraw(trial)
        self._entries[trial].phase = Phase.PARKED

    def unpark(self, trial: int) -> None:
        """The trial may go on; WAITING until the engine says with what."""
        self._entries[trial].phase = Phase.WAITING

    def schedule(self) -> Schedule:
        """The next piece; falsy if no trial is RUNNING. What it names counts as served."""
        first = next((entry for entry in self._entries.values() if entry.phase is Phase.RUNNING), None)
        if first is None:
            return Schedule()
        chosen = Schedule(tuple(self._fill(first)), first.work)
        for trial in chosen.trials():
            entry = self._entries[trial] = self._entries.pop(trial)
            if not entry.chunks:
                self._wait(entry)
        return chosen

    def _wait(self, entry: _Entry) -> None:
        entry.phase, entry.secluded = Phase.WAITING, False

    def _fill(self, first: _Entry) -> Iterable[tuple[int, int]]:
        """One chunk of each trial that may share a piece with `first` in turn, again and again, while they fit."""
        tokens, rows = self._budget, self._row_budget
        nothing = True
        running = ((trial, entry) for trial, entry in self._entries.items() if entry.phase is Phase.RUNNING)
        turn = deque((trial, entry.chunks) for trial, entry in running if entry is first or _share(first, entry))
        while turn:
            trial, chunks = turn.popleft()
            chunk = chunks[0]
            if not nothing and (chunk.tokens > tokens or (rows is not None and chunk.rows > rows)):
                continue
            yield trial, chunks.popleft().place
            tokens -= chunk.tokens
            rows = None if rows is None else rows - chunk.rows
            nothing = False
            if chunks:
                turn.append((trial, chunks))


def _share(one: _Entry, other: _Entry) -> bool:
    return one.work is other.work and not one.secluded and not other.secluded
