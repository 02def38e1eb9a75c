"""The tracker protocol: what is remembered of a sweep, and where people look at it.

One writer per sweep, the driver, fed from the ledger's outbox in order; every call may come twice after a crash and must
then change nothing (`log` carries each metric's own time, so that a metric sent twice is stored once).
Statuses: COMPLETE and PRUNED -> finished with tag `sweeper.state`, FAIL -> failed, stopped by a person -> killed, paused or
interrupted -> running until the sweep ends.
Does not know: the study database, Ray, torch. Cost: that of the store behind it; no call is made from the training loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sweeper.errors import SweeperError
from sweeper.records import ParamValue, TrialState

TAG_STUDY = "sweeper.study"
TAG_SWEEP = "sweeper.sweep"
"""Names one sweep for ever, also where two homes hold a study of the same name: a run is found again by it after a crash."""
TAG_TRIAL = "sweeper.trial"
TAG_STATE = "sweeper.state"
TAG_REASON = "sweeper.reason"
TAG_RUNG = "sweeper.rung"
TAG_WINNER = "sweeper.winner"
"""On a trial's run `true` or `false`, on the sweep's own run the number of the winner."""

BY_PERSON = "stopped by a person"
"""A trial whose reason begins with this is shown as killed."""


class TrackerRefusedError(SweeperError):
    """The tracker will never take this call (a deleted run, a value it does not allow): trying again is of no use."""


@dataclass(frozen=True)
class Metric:
    """One value of one metric. `step` is nominal examples, `time_ms` the Unix milliseconds of the report that brought it."""

    name: str
    value: float
    step: int
    time_ms: int


class Tracker(Protocol):
    """Where results are shown. A run is named by the string that `start_sweep` or `start_trial` returned."""

    kind: str
    key: str  # the store, short and without secrets: names the outbox's cursor, so that a new store is told everything

    def start_sweep(
        self,
        study: str,
        spec: Mapping[str, object],
        tags: Mapping[str, str],
        run: str | None = None,
        time_ms: int | None = None,
    ) -> str:
        """Starts the sweep's own run, or goes on with `run`; returns its id. `spec` has its secrets masked.

        Without `run`, a run of the same study and `sweeper.sweep` tag is gone on with; a `run` the store has lost is begun anew.
        `time_ms` is when it happened (Unix milliseconds), where the tracker can show it; default: now.
        """
        ...

    def start_trial(
        self,
        sweep: str,
        number: int,
        params: Mapping[str, ParamValue],
        tags: Mapping[str, str],
        run: str | None = None,
        time_ms: int | None = None,
    ) -> str:
        """Starts the run of a trial below `sweep`, or goes on with `run` or the one of that number; returns its id."""
        ...

    def log(self, run: str, metrics: Sequence[Metric]) -> None:
        """Logs metrics of a run, those of one event together."""
        ...

    def set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        """Sets tags of a run; a tag set before is overwritten."""
        ...

    def log_artifact(self, run: str, path: Path, folder: str = "") -> None:
        """Copies a file, or a whole folder, into the run's artifacts below `folder`."""
        ...

    def log_dataset(self, run: str, name: str, digest: str, source: str, context: str, profile: Mapping[str, object]) -> None:
        """Notes a data set: its name, fingerprint, where it came from, what it was used for, and its counts."""
        ...

    def log_table(self, run: str, name: str, columns: Mapping[str, Sequence[object]]) -> None:
        """Stores a table under `name`."""
        ...

    def register_model(self, run: str, name: str, folder: str) -> str:
        """Registers the run's artifact folder as a model version; returns `name/version`, or `` where there is no registry."""
        ...

    def mark_winner(self, sweep: str, run: str, number: int, params: Mapping[str, ParamValue], metrics: Sequence[Metric]) -> None:
        """Marks the trial's run as the winner, and unmarks another; number, params and metrics stand on the sweep's run too."""
        ...

    def end_trial(self, run: str, state: TrialState, reason: str = "", time_ms: int | None = None) -> None:
        """Ends the run of a trial (a PAUSED or WAITING one stays running), with its state and reason as tags."""
        ...

    def end_sweep(self, run: str, finished: bool, reason: str = "", time_ms: int | None = None) -> None:
        """Ends the sweep's own run, and runs of trials still open; `finished` is False where it was interrupted and will go on."""
        ...

    def knows(self, run: str) -> bool:
        """Whether the store still holds the run; where not (a store that was deleted), the outbox tells everything again."""
        ...

    def url(self, run: str) -> str:
        """Where a person looks at the run."""
        ...

    def close(self) -> None:
        """Lets go of connections; no call may follow."""
        ...
