"""MLflow: one parent run per sweep, one child run per trial, nested as its UI shows them.

Purpose: translate tracker calls into MlflowClient calls. Only the client is used, never the fluent API with its global run.
A run is found again by its tags before another is created, parameters are written once, metrics carry their own time (MLflow
stores the same name, time, step and value once), so every call may come twice.
MLflow's own ways, which a reader of the numbers should know: NaN stays NaN, infinity becomes 1.8e308, a value of more than
6,000 (parameters) or 8,000 (tags) characters is cut.
Does not know: the ledger, or retries (the outbox has them). Cost: the import takes 2-3 s, the first use of an SQLite store 2 s
(tables), then 5-10 ms a call, 15-35 ms through a server.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from sweeper.errors import ResourceError
from sweeper.records import ParamValue, TrialState
from sweeper.spec.mask import mask
from sweeper.tracking.base import TAG_REASON, TAG_STATE, TAG_STUDY, TAG_SWEEP, TAG_TRIAL, TAG_WINNER, Metric, TrackerRefusedError
from sweeper.tracking.memory import status_of
from sweeper.tracking.privacy import quiet

PARENT = "mlflow.parentRunId"
SOURCE = {"mlflow.source.name": "sweeper", "mlflow.source.type": "LOCAL"}
FIXED = {"model": ("model", "name"), "method": ("training", "method"), "task": ("data", "task"), "base": ("training", "base")}
"""Parameters of the parent run: parts of the spec that a study can never change, since MLflow refuses a changed parameter."""

_STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_FOR_EVER = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST", "NOT_IMPLEMENTED"}
_METRICS_A_CALL = 1000
_PARAMS_A_CALL = 100


class MlflowTracker:
    """Tracker over an MLflow store: `sqlite:///...`, another database URL, or `http(s)://...` of a server.

    `artifact_root` is where artifacts of a new experiment go; None leaves it to the store (a server keeps them itself).
    Raises ResourceError if the store cannot be opened, or the experiment lies in MLflow's trash.
    """

    kind = "mlflow"

    def __init__(self, uri: str, experiment: str, artifact_root: Path | None = None, key: str | None = None) -> None:
        quiet()
        _short_waits(uri)
        from mlflow import MlflowClient

        self.uri = uri
        self.key = key or f"mlflow-{sha256(f'{uri} {experiment}'.encode()).hexdigest()[:8]}"
        with self._told():
            self._client = MlflowClient(uri, registry_uri=uri)
            self._experiment = self._open_experiment(experiment, artifact_root)

    def start_sweep(
        self,
        study: str,
        spec: Mapping[str, object],
        tags: Mapping[str, str],
        run: str | None = None,
        time_ms: int | None = None,
    ) -> str:
        wanted = {TAG_STUDY: study, **{name: tags[name] for name in (TAG_SWEEP,) if name in tags}}
        labels = {**SOURCE, TAG_STUDY: study, TAG_STATE: "running", **mask(tags)}
        with self._told():
            found = self._existing(run) or self._find(wanted, f"attribute.run_name = {_quoted(study)}")
            if found is None:
                found = self._client.create_run(self._experiment, start_time=time_ms, tags=labels, run_name=study)
            else:
                self._reopen(found)
                self._write(found.info.run_id, tags=labels)
            self._params(found, {name: str(value) for name, value in _fixed(spec).items()})
            self._client.log_dict(found.info.run_id, mask(spec), "spec.yaml")
            return str(found.info.run_id)

    def start_trial(
        self,
        sweep: str,
        number: int,
        params: Mapping[str, ParamValue],
        tags: Mapping[str, str],
        run: str | None = None,
        time_ms: int | None = None,
    ) -> str:
        state = {TAG_TRIAL: str(number), TAG_STATE: TrialState.RUNNING.value}
        labels = {**SOURCE, PARENT: sweep, **state, **mask(tags)}
        with self._told():
            self._reopen(self._client.get_run(sweep))
            found = self._existing(run) or self._find({PARENT: sweep, TAG_TRIAL: str(number)})
            if found is None:
                name = f"trial {number}"
                found = self._client.create_run(self._experiment, start_time=time_ms, tags=labels, run_name=name)
            else:
                self._reopen(found)
                self._write(found.info.run_id, tags=labels)
            self._params(found, {name: str(value) for name, value in params.items()})
            return str(found.info.run_id)

    def log(self, run: str, metrics: Sequence[Metric]) -> None:
        from mlflow.entities import Metric as MlflowMetric

        rows = [MlflowMetric(metric_name(m.name), float(m.value), m.time_ms, m.step) for m in metrics]
        with self._told():
            for start in range(0, len(rows), _METRICS_A_CALL):
                self._client.log_batch(run, metrics=rows[start : start + _METRICS_A_CALL], synchronous=True)

    def set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        with self._told():
            self._write(run, tags=mask(tags))

    def log_artifact(self, run: str, path: Path, folder: str = "") -> None:
        with self._told():
            if path.is_dir():
                self._client.log_artifacts(run, str(path), folder or None)
            else:
                self._client.log_artifact(run, str(path), folder or None)

    def log_dataset(self, run: str, name: str, digest: str, source: str, context: str, profile: Mapping[str, object]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        fact = Dataset(
            name=name,
            digest=digest[:36],  # MLflow's column holds 36 characters
            source_type="sweeper",
            source=json.dumps({"uri": mask(source)}),
            profile=json.dumps(mask(profile)),
        )
        with self._told():
            self._client.log_inputs(run, [DatasetInput(fact, tags=[InputTag("mlflow.data.context", context)])])

    def log_table(self, run: str, name: str, columns: Mapping[str, Sequence[object]]) -> None:
        # MLflow's own log_table appends to a file that is there, which would double the rows of a call that comes twice.
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        file = f"{name}.json"
        with self._told():
            self._client.log_text(run, json.dumps({"columns": list(columns), "data": rows}, default=str), file)
            known = json.loads(self._client.get_run(run).data.tags.get("mlflow.loggedArtifacts", "[]"))
            entry = {"path": file, "type": "table"}
            if entry not in known:
                self._client.set_tag(run, "mlflow.loggedArtifacts", json.dumps([*known, entry]))

    def register_model(self, run: str, name: str, folder: str) -> str:
        from mlflow.exceptions import MlflowException

        source = f"runs:/{run}/{folder}"
        with self._told():
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            for version in self._client.search_model_versions(f"name = {_quoted(name)}"):
                if version.run_id == run and version.source == source:
                    return f"{name}/{version.version}"
            return f"{name}/{self._client.create_model_version(name, source, run_id=run).version}"

    def mark_winner(self, sweep: str, run: str, number: int, params: Mapping[str, ParamValue], metrics: Sequence[Metric]) -> None:
        with self._told():
            for former in self._search({PARENT: sweep, TAG_WINNER: "true"}):
                if former.info.run_id != run:
                    self._client.set_tag(former.info.run_id, TAG_WINNER, "false")
            self._client.set_tag(run, TAG_WINNER, "true")
            # Tags, since more trials may bring another winner, and a parameter can never change.
            self._write(sweep, tags={TAG_WINNER: str(number), **{f"winner.{key}": str(value) for key, value in params.items()}})
        self.log(sweep, metrics)

    def end_trial(self, run: str, state: TrialState, reason: str = "", time_ms: int | None = None) -> None:
        with self._told():
            self._write(run, tags={TAG_STATE: state.value, TAG_REASON: mask(reason)})
            self._end(run, _STATUS[status_of(state, reason)], time_ms)

    def end_sweep(self, run: str, finished: bool, reason: str = "", time_ms: int | None = None) -> None:
        with self._told():
            self._write(run, tags={TAG_STATE: "finished" if finished else "interrupted", TAG_REASON: mask(reason)})
            if not finished:
                return
            for child in self._search({PARENT: run}, "attribute.status = 'RUNNING'"):
                self._end(child.info.run_id, "KILLED", time_ms)
            self._end(run, "FINISHED", time_ms)

    def knows(self, run: str) -> bool:
        with self._told():
            return self._existing(run) is not None

    def url(self, run: str) -> str:
        if self.uri.startswith(("http://", "https://")):
            return f"{mask(self.uri).rstrip('/')}/#/experiments/{self._experiment}/runs/{run}"
        return str(mask(self.uri))

    def close(self) -> None:
        return None

    def _open_experiment(self, name: str, artifact_root: Path | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = None if artifact_root is None else (artifact_root.absolute() / name).as_uri()
            # The UI asks people what kind of experiment they look at, and hides columns, unless this tag says it.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            try:
                return str(self._client.create_experiment(name, artifact_location=location, tags=tags))
            except MlflowException as error:  # two sweeps that begin at once
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise error
        if found.lifecycle_stage != "active":
            raise ResourceError(
                f"the experiment {name!r} lies in MLflow's trash; restore it with "
                f"`mlflow experiments restore -x {found.experiment_id}`, or name another one under tracking.project"
            )
        return str(found.experiment_id)

    def _existing(self, run: str | None) -> Any | None:
        """The run of that id, or None where the store does not hold it, or holds it in the trash."""
        from mlflow.exceptions import MlflowException

        if run is None:
            return None
        try:
            found = self._client.get_run(run)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return found if found.info.lifecycle_stage == "active" else None

    def _find(self, tags: Mapping[str, str], also: str = "") -> Any | None:
        found = self._search(tags, also)
        return found[-1] if found else None  # newest first: the oldest is the one that a crash left

    def _search(self, tags: Mapping[str, str], also: str = "") -> list[Any]:
        clauses = [f"tags.`{key}` = {_quoted(value)}" for key, value in tags.items()]
        clauses += [also] if also else []
        found: list[Any] = []
        token: str | None = None
        while True:
            page = self._client.search_runs([self._experiment], " and ".join(clauses), page_token=token)
            found.extend(page)
            token = page.token
            if not token:
                return found

    def _reopen(self, run: Any) -> None:
        if run.info.status != "RUNNING":
            self._client.update_run(run.info.run_id, status="RUNNING")

    def _end(self, run: str, status: str, time_ms: int | None) -> None:
        found = self._client.get_run(run)
        if status == "RUNNING":
            self._reopen(found)
        elif found.info.status != status:
            self._client.set_terminated(run, status, end_time=time_ms)

    def _params(self, run: Any, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        fresh = [Param(metric_name(key), value) for key, value in params.items() if metric_name(key) not in run.data.params]
        for start in range(0, len(fresh), _PARAMS_A_CALL):
            self._client.log_batch(run.info.run_id, params=fresh[start : start + _PARAMS_A_CALL], synchronous=True)

    def _write(self, run: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        rows = [RunTag(metric_name(key), value) for key, value in tags.items()]
        for start in range(0, len(rows), _PARAMS_A_CALL):
            self._client.log_batch(run, tags=rows[start : start + _PARAMS_A_CALL], synchronous=True)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns MLflow's errors into ours: refused for ever, or out of reach for now."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            said = mask(str(error)).strip().splitlines()[0] if str(error) else type(error).__name__
            if error.error_code in _FOR_EVER:
                raise TrackerRefusedError(f"MLflow refused: {said}") from error
            raise ResourceError(f"MLflow at {mask(self.uri)} does not answer: {said}") from error


def metric_name(name: str) -> str:
    """`name` as MLflow allows it: letters, digits, `_ - . : / ` and spaces, and no path tricks; others become `_`."""
    clean = re.sub(r"[^\w\-. /:]", "_", name)
    parts = [part for part in clean.split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:250] or "_"


def _fixed(spec: Mapping[str, object]) -> dict[str, object]:
    facts: dict[str, object] = {}
    for name, (section, key) in FIXED.items():
        part = spec.get(section)
        if isinstance(part, Mapping) and key in part:
            facts[name] = mask(part[key])
    return facts


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"


def _short_waits(uri: str) -> None:
    """MLflow would try a silent server for many minutes, a silent database for 100 s; the outbox tries again by itself."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if not uri.startswith(("http://", "https://")):
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = 2
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
