"""What was told of a study and is not committed yet: rows by table, and what they changed in memory.

Purpose: whatever is told together is one transaction and a statement for each table, not for each report. Whoever fills a batch
changes the study in memory at once, so that what comes later in it sees what came before; `known` says how it was, so that a
transaction that failed can be taken back there as well.
Does not know what a row means, nor when it is written (`writes.py`). Cost: lists.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sweeper.records import Decision, Report
from sweeper.study.ledger import NewEvent
from sweeper.study.space import Signature
from sweeper.study.store import Ended, Value
from sweeper.study.trials import TrialRow, Usage


@dataclass
class Known:
    """What the study knew before the batch: trials as they are stored, and what came to be known in it."""

    trials: dict[int, TrialRow | None] = field(default_factory=dict)
    stops: dict[int, Decision | None] = field(default_factory=dict)
    values: list[tuple[int, int]] = field(default_factory=list)  # on curves: trial, nominal
    reported: list[tuple[int, int, int]] = field(default_factory=list)
    used: list[Signature] = field(default_factory=list)


@dataclass
class Batch:
    """Rows that wait, in the order in which they came."""

    events: list[NewEvent] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # trials whose attempts begin
    reports: list[tuple[Report, float | None]] = field(default_factory=list)
    checkpoints: list[Report] = field(default_factory=list)
    decisions: list[tuple[Report, Decision]] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)  # Optuna's ids
    ends: list[Ended] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    known: Known = field(default_factory=Known)

    def __bool__(self) -> bool:
        return bool(self.events)
