"""TensorBoard: a folder per sweep, below it a folder of event files per trial.

    <folder>/<study>/sweep/        spec, data set and winner as texts
    <folder>/<study>/trial-0007/   scalars with their own times, parameters and state for the HPARAMS tab

Purpose: event files, written with tensorboard's own classes, so that neither torch nor TensorFlow is imported. A file cannot be
changed afterwards; so before a run is gone on with, its files are read, and values they hold are not written again.
Texts that change (state, reason) are written again; the last one counts.
Does not know: a registry. Cost: a flushed write a call; reading a run of 1,000 values again takes about 0.1 s.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper.errors import ResourceError
from sweeper.records import ParamValue, TrialState
from sweeper.spec.mask import mask
from sweeper.tracking import tensorboard_events as events
from sweeper.tracking.base import TAG_REASON, TAG_STATE, TAG_STUDY, TAG_TRIAL, TAG_WINNER, Metric, TrackerRefusedError
from sweeper.tracking.memory import status_of

TAG_PREFIX = "tag/"
"""Texts below this name are tags, e.g. `tag/sweeper.state`."""

_SWEEP = "sweep"


class TensorboardTracker:
    """Tracker over a folder of event files. A run's id is its folder, relative to that one.

    Raises ResourceError if the folder cannot be written.
    """

    kind = "tensorboard"

    def __init__(self, folder: Path, key: str = "tensorboard") -> None:
        self.folder = folder
        self.key = key
        self._writers: dict[str, Any] = {}
        self._known: dict[str, events.Known] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(
                f"the TensorBoard folder {folder} cannot be written ({error.strerror}); name another under tracking.uri"
            ) from error

    def start_sweep(
        self,
        study: str,
        spec: Mapping[str, object],
        tags: Mapping[str, str],
        run: str | None = None,
        time_ms: int | None = None,
    ) -> str:
        run = f"{study}/{_SWEEP}"
        (self.folder / run).mkdir(parents=True, exist_ok=True)
        self._text(run, "spec", _as_code(mask(spec)))
        self.set_tags(run, {TAG_STUDY: study, TAG_STATE: "running", **tags})
        return run

    def start_trial(
        self,
        sweep: str,
        number: int,
        params: Mapping[str, ParamValue],
        tags: Mapping[str, str],
        run: str | None = None,
        time_ms: int | None = None,
    ) -> str:
        run = f"{sweep.removesuffix('/' + _SWEEP)}/trial-{number:04d}"
        (self.folder / run).mkdir(parents=True, exist_ok=True)
        if not self._seen(run).started:
            self._write(run, events.session_start(params, _seconds(time_ms)))
            self._seen(run).started = True
        self.set_tags(run, {TAG_TRIAL: str(number), TAG_STATE: TrialState.RUNNING.value, **tags})
        return run

    def log(self, run: str, metrics: Sequence[Metric]) -> None:
        known, writer = self._seen(run).scalars, self._writer(run)
        for metric in metrics:
            point = (metric.name, metric.step, metric.time_ms)
            if point not in known:
                writer.add_event(events.event(events.scalar(metric.name, metric.value), metric.step, metric.time_ms / 1000))
                known.add(point)
        writer.flush()

    def set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        for name, value in mask(tags).items():
            self._text(run, f"{TAG_PREFIX}{name}", value)

    def log_artifact(self, run: str, path: Path, folder: str = "") -> None:
        place = self._place(run) / "artifacts" / folder
        if path.is_dir():
            shutil.copytree(path, place, dirs_exist_ok=True)
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place / path.name)

    def log_dataset(self, run: str, name: str, digest: str, source: str, context: str, profile: Mapping[str, object]) -> None:
        fact = {"name": name, "digest": digest, "source": mask(source), "context": context, "profile": mask(profile)}
        self._text(run, f"data/{context}", _as_code(fact))

    def log_table(self, run: str, name: str, columns: Mapping[str, Sequence[object]]) -> None:
        lines = [columns.keys(), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
        self._text(run, name, "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines))

    def register_model(self, run: str, name: str, folder: str) -> str:
        return ""

    def mark_winner(self, sweep: str, run: str, number: int, params: Mapping[str, ParamValue], metrics: Sequence[Metric]) -> None:
        for other in sorted(self._place(sweep).parent.glob("trial-*")):
            former = str(other.relative_to(self.folder))
            if former != run and self._seen(former).texts.get(f"{TAG_PREFIX}{TAG_WINNER}") == "true":
                self.set_tags(former, {TAG_WINNER: "false"})
        self.set_tags(run, {TAG_WINNER: "true"})
        self.set_tags(sweep, {TAG_WINNER: str(number), **{f"winner.{key}": str(value) for key, value in params.items()}})
        self.log(sweep, metrics)

    def end_trial(self, run: str, state: TrialState, reason: str = "", time_ms: int | None = None) -> None:
        self.set_tags(run, {TAG_STATE: state.value, TAG_REASON: reason})
        if state.is_finished():
            self._write(run, events.session_end(status_of(state, reason) == "failed", _seconds(time_ms)))
        self._let_go(run)

    def end_sweep(self, run: str, finished: bool, reason: str = "", time_ms: int | None = None) -> None:
        self.set_tags(run, {TAG_STATE: "finished" if finished else "interrupted", TAG_REASON: reason})
        self._let_go(run)

    def knows(self, run: str) -> bool:
        return (self.folder / run).is_dir()

    def url(self, run: str) -> str:
        return str(self.folder / run)

    def close(self) -> None:
        for run in list(self._writers):
            self._let_go(run)

    def _text(self, run: str, name: str, text: str) -> None:
        if self._seen(run).texts.get(name) != text:
            self._write(run, events.text(name, text))
            self._seen(run).texts[name] = text

    def _write(self, run: str, summary: Any) -> None:
        writer = self._writer(run)
        writer.add_event(events.event(summary))
        writer.flush()

    def _writer(self, run: str) -> Any:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if run not in self._writers:
            self._seen(run)  # read before another file begins
            self._writers[run] = EventFileWriter(str(self._place(run)), max_queue_size=100)
        return self._writers[run]

    def _place(self, run: str) -> Path:
        place = self.folder / run
        if not place.is_dir():
            raise TrackerRefusedError(f"TensorBoard's folder {place} is gone; what belongs there is not told again")
        return place

    def _seen(self, run: str) -> events.Known:
        if run not in self._known:
            self._known[run] = events.read(self._place(run))
        return self._known[run]

    def _let_go(self, run: str) -> None:
        writer = self._writers.pop(run, None)
        if writer is not None:
            writer.close()
        self._known.pop(run, None)


def _as_code(value: object) -> str:
    body = json.dumps(value, indent=2, default=str)
    return "\n".join("    " + line for line in body.splitlines())  # four spaces: a block of code in markdown


def _seconds(time_ms: int | None) -> float:
    return time.time() if time_ms is None else time_ms / 1000
