"""The tracker that keeps everything in memory: the double that tests and notebooks read.

Purpose: show what a tracker is told, with the same rules as the others (a metric once, a run found again by its number).
Does not know: files beyond the names of those it was handed. Cost: dictionaries; gone when the process ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sweeper.records import ParamValue, TrialState
from sweeper.spec.mask import mask
from sweeper.tracking.base import (
    BY_PERSON,
    TAG_REASON,
    TAG_STATE,
    TAG_STUDY,
    TAG_SWEEP,
    TAG_TRIAL,
    TAG_WINNER,
    Metric,
    TrackerRefusedError,
)


@dataclass
class MemoryRun:
    """One run as it is remembered. `status` is running, finished, failed or killed."""

    id: str
    name: str
    parent: str | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, list[Metric]] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    datasets: list[dict[str, object]] = field(default_factory=list)
    tables: dict[str, dict[str, list[object]]] = field(default_factory=dict)
    spec: object = None
    status: str = "running"


class MemoryTracker:
    """Tracker over a dictionary of runs; `runs` is what a test reads."""

    kind = "memory"
    key = "memory"

    def __init__(self) -> None:
        self.runs: dict[str, MemoryRun] = {}
        self.models: list[str] = []

    def trials(self, sweep: str) -> dict[int, MemoryRun]:
        """Runs of trials below `sweep`, by number."""
        return {int(run.tags[TAG_TRIAL]): run for run in self.runs.values() if run.parent == sweep}

    def start_sweep(
        self,
        study: str,
        spec: Mapping[str, object],
        tags: Mapping[str, str],
        run: str | None = None,
        time_ms: int | None = None,
    ) -> str:
        wanted = {TAG_STUDY: study, **{name: tags[name] for name in (TAG_SWEEP,) if name in tags}}
        found = self.runs.get(run or "") or self._find(None, wanted) or self._new(study, None)
        found.tags.update({TAG_STUDY: study, **mask(tags)})
        found.spec = mask(spec)
        found.status = "running"
        return found.id

    def start_trial(
        self,
        sweep: str,
        number: int,
        params: Mapping[str, ParamValue],
        tags: Mapping[str, str],
        run: str | None = None,
        time_ms: int | None = None,
    ) -> str:
        self._run(sweep).status = "running"
        name = str(number)
        found = self.runs.get(run or "") or self._find(sweep, {TAG_TRIAL: name}) or self._new(f"trial {number}", sweep)
        found.params = {key: str(value) for key, value in params.items()} | found.params
        found.tags.update({TAG_TRIAL: name, TAG_STATE: TrialState.RUNNING.value, **mask(tags)})
        found.status = "running"
        return found.id

    def log(self, run: str, metrics: Sequence[Metric]) -> None:
        kept = self._run(run).metrics
        for metric in metrics:
            known = kept.setdefault(metric.name, [])
            if all((metric.step, metric.time_ms) != (other.step, other.time_ms) for other in known):
                known.append(metric)

    def set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        self._run(run).tags.update(mask(tags))

    def log_artifact(self, run: str, path: Path, folder: str = "") -> None:
        files = [path.name] if path.is_file() else [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()]
        kept = self._run(run).artifacts
        kept.extend(name for name in (f"{folder}/{file}".lstrip("/") for file in files) if name not in kept)

    def log_dataset(self, run: str, name: str, digest: str, source: str, context: str, profile: Mapping[str, object]) -> None:
        fact: dict[str, object] = {
            "name": name,
            "digest": digest,
            "source": mask(source),
            "context": context,
            "profile": dict(profile),
        }
        if fact not in self._run(run).datasets:
            self._run(run).datasets.append(fact)

    def log_table(self, run: str, name: str, columns: Mapping[str, Sequence[object]]) -> None:
        self._run(run).tables[name] = {key: list(values) for key, values in columns.items()}

    def register_model(self, run: str, name: str, folder: str) -> str:
        version = f"{name}:{self._run(run).id}/{folder}"
        if version not in self.models:
            self.models.append(version)
        return f"{name}/{self.models.index(version) + 1}"

    def mark_winner(self, sweep: str, run: str, number: int, params: Mapping[str, ParamValue], metrics: Sequence[Metric]) -> None:
        for other in self.trials(sweep).values():
            if TAG_WINNER in other.tags:
                other.tags[TAG_WINNER] = "false"
        self._run(run).tags[TAG_WINNER] = "true"
        self._run(sweep).tags.update({TAG_WINNER: str(number), **{f"winner.{key}": str(value) for key, value in params.items()}})
        self.log(sweep, metrics)

    def end_trial(self, run: str, state: TrialState, reason: str = "", time_ms: int | None = None) -> None:
        found = self._run(run)
        found.tags.update({TAG_STATE: state.value, TAG_REASON: mask(reason)})
        found.status = status_of(state, reason)

    def end_sweep(self, run: str, finished: bool, reason: str = "", time_ms: int | None = None) -> None:
        found = self._run(run)
        found.tags.update({TAG_STATE: "finished" if finished else "interrupted", TAG_REASON: mask(reason)})
        if finished:
            found.status = "finished"
            for trial in self.trials(run).values():
                trial.status = "killed" if trial.status == "running" else trial.status

    def knows(self, run: str) -> bool:
        return run in self.runs

    def url(self, run: str) -> str:
        return f"memory:{run}"

    def close(self) -> None:
        return None

    def _new(self, name: str, parent: str | None) -> MemoryRun:
        run = MemoryRun(f"run-{len(self.runs)}", name, parent)
        self.runs[run.id] = run
        return run

    def _find(self, parent: str | None, tags: Mapping[str, str]) -> MemoryRun | None:
        fits = (run for run in self.runs.values() if run.parent == parent and tags.items() <= run.tags.items())
        return next(fits, None)

    def _run(self, run: str) -> MemoryRun:
        if run not in self.runs:
            raise TrackerRefusedError(f"no run {run!r} in memory")
        return self.runs[run]


def status_of(state: TrialState, reason: str) -> str:
    """running, finished, failed or killed: what a trial's state means for its run."""
    if state is TrialState.FAIL:
        return "failed"
    if not state.is_finished():
        return "running"
    return "killed" if reason.startswith(BY_PERSON) else "finished"
