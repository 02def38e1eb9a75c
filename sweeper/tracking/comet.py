"""Comet: one experiment per sweep and one per trial, online or as offline archives.

Purpose: translate tracker calls into `comet_ml`. Comet lets one experiment live at a time in a process, and keeps an offline one
in a temporary folder that kill -9 loses. So calls go into a journal first, and an experiment is handed over whole when its
trial or sweep ends (and when the tracker is closed). Offline, handing over again replaces the archive; online it adds what is new.
Comet stamps values with the time of the handing over; their steps are kept, and the journal keeps their own times.
Does not know: Comet's optimizer. Cost: the import takes 1.6 s, handing over about 1 s, in the outbox's thread.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from sweeper.errors import ResourceError
from sweeper.records import ParamValue, TrialState
from sweeper.spec.mask import mask
from sweeper.tracking.base import TAG_REASON, TAG_STATE, TAG_STUDY, TAG_SWEEP, TAG_TRIAL, TAG_WINNER, Metric
from sweeper.tracking.journal import Journals, RunFacts
from sweeper.tracking.privacy import quiet

_SILENT: dict[str, Any] = {
    "log_code": False,
    "log_graph": False,
    "auto_param_logging": False,
    "auto_metric_logging": False,
    "auto_output_logging": False,
    "parse_args": False,
    "log_env_details": False,
    "log_git_metadata": False,
    "log_git_patch": False,
    "display_summary_level": 0,
}
"""What Comet would gather by itself, all off."""


class CometTracker:
    """Tracker over a Comet project; `folder` holds journals and offline archives (`<experiment key>.zip`).

    Raises ResourceError if Comet cannot be reached, or no key is known, when something is handed over.
    """

    kind = "comet"

    def __init__(self, project: str, folder: Path, online: bool = True, key: str | None = None) -> None:
        quiet()
        os.environ.setdefault("COMET_DISABLE_AUTO_LOGGING", "1")
        self.project = project
        self.folder = folder
        self.online = online
        self.key = key or f"comet-{sha256(project.encode()).hexdigest()[:8]}"
        self._journals = Journals(folder / "journals")
        self._waiting: set[str] = set()

    def start_sweep(
        self,
        study: str,
        spec: Mapping[str, object],
        tags: Mapping[str, str],
        run: str | None = None,
        time_ms: int | None = None,
    ) -> str:
        run = run or self._journals.run_id(tags.get(TAG_SWEEP, study))
        labels = {TAG_STUDY: study, TAG_STATE: "running", **mask(tags)}
        self._note(run, name=study, parent="", spec=mask(spec), tags=labels)
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
        run = run or self._journals.run_id(sweep, str(number))
        labels = {TAG_TRIAL: str(number), TAG_STATE: TrialState.RUNNING.value, **mask(tags)}
        self._note(run, name=f"trial {number}", parent=sweep, params={k: str(v) for k, v in params.items()}, tags=labels)
        return run

    def log(self, run: str, metrics: Sequence[Metric]) -> None:
        fresh = self._journals.fresh(run, metrics)
        self._journals.note_metrics(run, fresh)
        if fresh:
            self._waiting.add(run)

    def set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        self._note(run, tags=mask(tags))

    def log_artifact(self, run: str, path: Path, folder: str = "") -> None:
        self._note(run, artifacts={f"{folder}/{path.name}".lstrip("/") if path.is_file() else folder: str(path)})

    def log_dataset(self, run: str, name: str, digest: str, source: str, context: str, profile: Mapping[str, object]) -> None:
        facts = {"name": name, "digest": digest, "source": mask(source), "profile": str(mask(profile))}
        self._note(run, tags={f"data.{context}.{key}": value for key, value in facts.items()})

    def log_table(self, run: str, name: str, columns: Mapping[str, Sequence[object]]) -> None:
        import csv

        path = self.folder / "tables" / run / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
        self.log_artifact(run, path, "tables")

    def register_model(self, run: str, name: str, folder: str) -> str:
        return ""

    def mark_winner(self, sweep: str, run: str, number: int, params: Mapping[str, ParamValue], metrics: Sequence[Metric]) -> None:
        for other in self._journals.trials(sweep).values():
            if other != run and self._journals.facts(other).tags.get(TAG_WINNER) == "true":
                self.set_tags(other, {TAG_WINNER: "false"})
        self.set_tags(run, {TAG_WINNER: "true"})
        self.set_tags(sweep, {TAG_WINNER: str(number), **{f"winner.{key}": str(value) for key, value in params.items()}})
        self.log(sweep, metrics)

    def end_trial(self, run: str, state: TrialState, reason: str = "", time_ms: int | None = None) -> None:
        self.set_tags(run, {TAG_STATE: state.value, TAG_REASON: reason})
        self._hand_over(run)

    def end_sweep(self, run: str, finished: bool, reason: str = "", time_ms: int | None = None) -> None:
        self.set_tags(run, {TAG_STATE: "finished" if finished else "interrupted", TAG_REASON: reason})
        self.close()

    def knows(self, run: str) -> bool:
        return self._journals.known(run)

    def url(self, run: str) -> str:
        return "https://www.comet.com" if self.online else str(self.archive(run))

    def close(self) -> None:
        for run in sorted(self._waiting):
            self._hand_over(run)

    def archive(self, run: str) -> Path:
        """The run's offline archive, for `comet upload`."""
        return self.folder / f"{experiment_key(run)}.zip"

    def _note(self, run: str, **entry: object) -> None:
        self._journals.note(run, **entry)
        self._waiting.add(run)

    def _hand_over(self, run: str) -> None:
        facts = self._journals.facts(run)
        experiment = self._experiment(run, again=facts.sent > 0)
        _tell(experiment, facts)
        experiment.end()
        self._journals.note(run, sent=len(facts.metrics) + 1)
        self._waiting.discard(run)

    def _experiment(self, run: str, again: bool) -> Any:
        import comet_ml

        logging.getLogger("comet_ml").setLevel(logging.ERROR)
        key = experiment_key(run)
        if not self.online:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.archive(run).unlink(missing_ok=True)
            return comet_ml.OfflineExperiment(
                project_name=self.project, experiment_key=key, offline_directory=str(self.folder), **_SILENT
            )
        try:
            if again:
                return comet_ml.ExistingExperiment(previous_experiment=key, **_SILENT)
            return comet_ml.Experiment(project_name=self.project, experiment_key=key, **_SILENT)
        except Exception as error:  # comet_ml raises ValueError, CometException and requests' errors here
            raise ResourceError(
                f"Comet cannot be opened: {mask(str(error)).splitlines()[0]}; set COMET_API_KEY, or set mode: offline"
            ) from error


def experiment_key(run: str) -> str:
    """The Comet key of a run: 32 hexadecimal digits, always the same for a run."""
    return sha256(run.encode()).hexdigest()[:32]


def _tell(experiment: Any, facts: RunFacts) -> None:
    experiment.set_name(facts.name)
    experiment.add_tag("trial" if facts.parent else "sweep")
    if facts.params:
        experiment.log_parameters(dict(facts.params))
    if facts.spec is not None:
        experiment.log_asset_data(facts.spec, name="spec.json", overwrite=True)
    for name, value in facts.tags.items():
        experiment.log_other(name, value)
    # Online, values handed over before stay where they are; an offline archive is written whole each time.
    already = max(facts.sent - 1, 0) if not _is_offline(experiment) else 0
    for metric in list(facts.metrics.values())[already:]:
        experiment.log_metric(metric.name, metric.value, step=metric.step)
    for folder, path in facts.artifacts.items():
        _attach(experiment, folder, Path(path))


def _attach(experiment: Any, folder: str, path: Path) -> None:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file():
                experiment.log_asset(str(file), file_name=f"{folder}/{file.relative_to(path)}", overwrite=True)
    elif path.is_file():
        experiment.log_asset(str(path), file_name=folder, overwrite=True)


def _is_offline(experiment: Any) -> bool:
    return type(experiment).__name__ == "OfflineExperiment"
