"""The tracker protocol: what is remembered of a sweep, and where people look at it.

One writer per sweep, the driver, fed from the ledger's outbox in order; every call may come twice after a crash and must
then change nothing (`log` carries each metric's own time, so that a metric sent twice is stored once).
Statuses: COMPLETE and PRUNED -> finished with tag `sweeper.state`, FAIL -> failed, paused or interrupted -> running.
Does not know: the study database, Ray, torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sweeper.records import ParamValue, TrialState


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

    def start_sweep(self, study: str, spec: Mapping[str, object], tags: Mapping[str, str], run: str | None = None) -> str:
        """Starts the sweep's own run, or goes on with `run`; returns its id. `spec` has its secrets masked."""
        ...

    def start_trial(
        self, sweep: str, number: int, params: Mapping[str, ParamValue], tags: Mapping[str, str], run: str | None = None
    ) -> str:
        """Starts the run of a trial below `sweep`, or goes on with `run`; returns its id."""
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

    def end_trial(self, run: str, state: TrialState, reason: str = "") -> None:
        """Ends the run of a trial (a PAUSED or WAITING one stays running), with its state and reason as tags."""
        ...

    def end_sweep(self, run: str, finished: bool, reason: str = "") -> None:
        """Ends the sweep's own run; `finished` is False where it was interrupted and will go on."""
        ...

    def url(self, run: str) -> str:
        """Where a person looks at the run."""
        ...

    def close(self) -> None:
        """Lets go of connections; no call may follow."""
        ...
