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
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper.errors import ResourceError
from sweeper.records import ParamValue, TrialState
from sweeper.tracking.base import TAG_REASON, TAG_STATE, TAG_STUDY, TAG_TRIAL, TAG_WINNER, Metric, TrackerRefusedError
from sweeper.tracking.masking import mask, mask_tags, mask_tree
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
        self._known: dict[str, _Known] = {}
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
        self._text(run, "spec", _as_code(mask_tree(spec)))
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
            self._started(run, params)
        self.set_tags(run, {TAG_TRIAL: str(number), TAG_STATE: TrialState.RUNNING.value, **tags})
        return run

    def log(self, run: str, metrics: Sequence[Metric]) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        known = self._seen(run).scalars
        for metric in metrics:
            point = (metric.name, metric.step, metric.time_ms)
            if point in known:
                continue
            value = summary_pb2.Summary.Value(tag=metric.name, simple_value=metric.value)
            summary = summary_pb2.Summary(value=[value])
            self._writer(run).add_event(event_pb2.Event(wall_time=metric.time_ms / 1000, step=metric.step, summary=summary))
            known.add(point)
        self._writer(run).flush()

    def set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        for name, value in mask_tags(tags).items():
            self._text(run, f"{TAG_PREFIX}{name}", value)

    def log_artifact(self, run: str, path: Path, folder: str = "") -> None:
        place = self._place(run) / "artifacts" / folder
        if path.is_dir():
            shutil.copytree(path, place, dirs_exist_ok=True)
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place / path.name)

    def log_dataset(self, run: str, name: str, digest: str, source: str, context: str, profile: Mapping[str, object]) -> None:
        fact = {"name": name, "digest": digest, "source": mask(source), "context": context, "profile": mask_tree(profile)}
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
        from tensorboard.plugins.hparams import api_pb2, summary

        self.set_tags(run, {TAG_STATE: state.value, TAG_REASON: reason})
        if state.is_finished():
            failed = status_of(state, reason) == "failed"
            self._summary(run, summary.session_end_pb(api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS))
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

    def _started(self, run: str, params: Mapping[str, ParamValue]) -> None:
        from tensorboard.plugins.hparams import summary

        kept = {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in params.items()}
        self._summary(run, summary.session_start_pb(hparams=kept))
        self._seen(run).started = True

    def _text(self, run: str, name: str, text: str) -> None:
        from tensorboard.plugins.text.summary import pb

        if self._seen(run).texts.get(name) == text:
            return
        self._summary(run, pb(name, text))
        self._seen(run).texts[name] = text

    def _summary(self, run: str, summary: Any) -> None:
        import time

        from tensorboard.compat.proto import event_pb2

        writer = self._writer(run)
        writer.add_event(event_pb2.Event(wall_time=time.time(), step=0, summary=summary))
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

    def _seen(self, run: str) -> _Known:
        if run not in self._known:
            self._known[run] = _read(self._place(run))
        return self._known[run]

    def _let_go(self, run: str) -> None:
        writer = self._writers.pop(run, None)
        if writer is not None:
            writer.close()
        self._known.pop(run, None)


class _Known:
    """What a run's event files hold: points (name, step, time in ms), last texts, and whether parameters are there."""

    def __init__(self) -> None:
        self.scalars: set[tuple[str, int, int]] = set()
        self.texts: dict[str, str] = {}
        self.started = False


def _read(folder: Path) -> _Known:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    known = _Known()
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                plugin = value.metadata.plugin_data.plugin_name
                if plugin == "text":
                    text = value.tensor.string_val[0].decode()
                    known.texts[re.sub(r"/text_summary$", "", value.tag)] = text
                elif plugin == "hparams":
                    known.started = True
                else:
                    known.scalars.add((value.tag, event.step, round(event.wall_time * 1000)))
    return known


def _as_code(value: object) -> str:
    body = json.dumps(value, indent=2, default=str)
    return "\n".join("    " + line for line in body.splitlines())  # four spaces: a block of code in markdown
