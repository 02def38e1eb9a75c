"""Every tracker passes the same suite, each store read back by its own reader."""

from __future__ import annotations

import json
import struct
import time
import uuid
import zipfile
from pathlib import Path

import pytest

from sweeper.tracking.base import Tracker
from sweeper.tracking.comet import CometTracker
from sweeper.tracking.memory import MemoryTracker
from sweeper.tracking.mlflow import MlflowTracker
from sweeper.tracking.tensorboard import TensorboardTracker
from sweeper.tracking.wandb import WandbTracker
from tests.contracts.tracker import Lab, RunView, TrackerContract, View


class MemoryLab:
    def __init__(self) -> None:
        self.tracker = MemoryTracker()

    def open(self) -> Tracker:
        return self.tracker

    def read(self) -> View:
        view = View([], {}, repr(self.tracker.runs))
        for run in self.tracker.runs.values():
            values = {name: [(m.step, m.value) for m in points] for name, points in run.metrics.items()}
            times = {name: [m.time_ms for m in points] for name, points in run.metrics.items()}
            _put(view, RunView(run.params, run.tags, values, times, run.status, set(run.artifacts)))
        return view


class MlflowLab:
    def __init__(self, uri: str, artifacts: Path | None) -> None:
        self.uri, self.artifacts = uri, artifacts
        self.experiment = f"demo-{uuid.uuid4().hex[:6]}"

    def open(self) -> Tracker:
        return MlflowTracker(self.uri, self.experiment, self.artifacts)

    def read(self) -> View:
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name(self.experiment)
        assert experiment is not None
        view = View([], {})
        for run in client.search_runs([experiment.experiment_id]):
            history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
            seen = RunView(
                dict(run.data.params),
                dict(run.data.tags),
                {name: [(m.step, m.value) for m in points] for name, points in history.items()},
                {name: [m.timestamp for m in points] for name, points in history.items()},
                run.info.status.lower(),
                _files(client, run.info.run_id),
            )
            if "sweeper.trial" not in seen.tags:
                spec = Path(client.download_artifacts(run.info.run_id, "spec.yaml")).read_text()
                view.raw += spec + str(run.inputs)
            view.raw += repr(seen)
            _put(view, seen)
        return view


class TensorboardLab:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self) -> Tracker:
        return TensorboardTracker(self.folder)

    def read(self) -> View:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        view = View([], {})
        for path in sorted({file.parent for file in self.folder.rglob("events.out.*")}):
            read = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0})
            read.Reload()
            seen = RunView(times={}, artifacts={str(file) for file in (path / "artifacts").rglob("*") if file.is_file()})
            assert seen.times is not None
            for name in read.Tags()["tensors"]:
                last = read.Tensors(name)[-1].tensor_proto
                kind = read.SummaryMetadata(name).plugin_data.plugin_name
                if kind == "text":
                    text = last.string_val[0].decode()
                    view.raw += text
                    if name.startswith("tag/"):
                        seen.tags[name.removeprefix("tag/").removesuffix("/text_summary")] = text
            for name in read.Tags()["scalars"]:
                seen.metrics[name] = [(event.step, event.value) for event in read.Scalars(name)]
                seen.times[name] = [round(event.wall_time * 1000) for event in read.Scalars(name)]
            seen.params = _hparams(path)
            _put(view, seen)
        return view


def _hparams(path: Path) -> dict[str, str]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.hparams import metadata

    found: dict[str, str] = {}
    for file in path.glob("events.out.*"):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag == metadata.SESSION_START_INFO_TAG:
                    start = metadata.parse_session_start_info_plugin_data(value.metadata.plugin_data.content)
                    for name, param in start.hparams.items():
                        found[name] = str(getattr(param, param.WhichOneof("kind")))
    return found


class WandbLab:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self) -> Tracker:
        return WandbTracker("demo", self.folder, online=False)

    def read(self) -> View:
        from wandb.proto import wandb_internal_pb2

        runs: dict[str, RunView] = {}
        raw = ""
        self._wait_written()
        for path in sorted(self.folder.glob("wandb/offline-run-*/*.wandb")):
            seen = runs.setdefault(path.stem.removeprefix("run-"), RunView(times={}))
            assert seen.times is not None
            for body in _leveldb_records(path):
                record = wandb_internal_pb2.Record.FromString(body)
                raw += str(record)
                for update in [*record.run.config.update, *record.config.update]:
                    name = update.key or ".".join(update.nested_key)
                    seen.params[name] = str(json.loads(update.value_json))
                for update in record.summary.update:
                    value = json.loads(update.value_json)
                    if isinstance(value, str):
                        seen.tags[update.key or ".".join(update.nested_key)] = value
                items = {i.nested_key[0]: json.loads(i.value_json) for i in record.history.item if len(i.nested_key) == 1}
                for name, value in items.items() if "examples" in items else ():
                    if name != "examples" and not name.startswith("_"):
                        seen.metrics.setdefault(name, []).append((int(items["examples"]), float(value)))
                        seen.times.setdefault(name, []).append(round(items["_timestamp"] * 1000))
        view = View([], {}, raw)
        for seen in runs.values():
            _put(view, seen)
        return view

    def _wait_written(self) -> None:
        """`finish` returns before W&B's own process has written the end of a file."""
        from wandb.proto import wandb_internal_pb2

        def ended(path: Path) -> bool:
            kinds = (wandb_internal_pb2.Record.FromString(body).WhichOneof("record_type") for body in _leveldb_records(path))
            return "exit" in set(kinds)

        until = time.monotonic() + 20
        while not all(ended(path) for path in self.folder.glob("wandb/offline-run-*/*.wandb")):
            assert time.monotonic() < until, "W&B has not written the end of a run"
            time.sleep(0.05)


def _leveldb_records(path: Path) -> list[bytes]:
    """Records of a W&B transaction log: LevelDB's log format (32 KB blocks) after a header of 7 bytes."""
    data, records, part, at = path.read_bytes(), [], b"", 7
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if kind == 0:
            break
        part += data[at + 7 : at + 7 + length]
        if kind in (1, 4):
            records.append(part)
            part = b""
        at += 7 + length
    return records


class CometLab:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self) -> Tracker:
        return CometTracker("demo", self.folder, online=False)

    def read(self) -> View:
        view = View([], {})
        for path in sorted(self.folder.glob("*.zip")):
            seen = RunView(artifacts=set())
            assert seen.artifacts is not None
            with zipfile.ZipFile(path) as archive:
                lines = archive.read("messages.json").decode()
            view.raw += lines
            for line in lines.splitlines():
                said = json.loads(line)["payload"]
                if "metric" in said:
                    metric = said["metric"]
                    seen.metrics.setdefault(metric["metricName"], []).append((metric["step"], float(metric["metricValue"])))
                elif "param" in said:
                    seen.params[said["param"]["paramName"]] = said["param"]["paramValue"]
                elif "key" in said:
                    seen.tags[said["key"]] = said["value"]
                elif "additional_params" in said:
                    seen.artifacts.add(str(said["additional_params"].get("fileName")))
            _put(view, seen)
        return view


def _put(view: View, run: RunView) -> None:
    if "sweeper.trial" in run.tags:
        view.trials.setdefault(int(run.tags["sweeper.trial"]), []).append(run)
    else:
        view.sweeps.append(run)


def _files(client: object, run: str, folder: str | None = None) -> set[str]:
    found: set[str] = set()
    for item in client.list_artifacts(run, folder):  # type: ignore[attr-defined]
        found |= _files(client, run, item.path) if item.is_dir else {item.path}
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One SQLite store for all tests on it, since its tables take 2 s; each test has its own experiment."""
    return tmp_path_factory.mktemp("store")


class TestMemory(TrackerContract):
    @pytest.fixture
    def lab(self, tmp_path: Path) -> Lab:
        return MemoryLab()


class TestMlflowOnSqlite(TrackerContract):
    @pytest.fixture
    def lab(self, store: Path) -> Lab:
        return MlflowLab(f"sqlite:///{store / 'mlflow.db'}", store / "artifacts")


class TestMlflowServer(TrackerContract):
    @pytest.fixture
    def lab(self, mlflow_server: str) -> Lab:
        return MlflowLab(mlflow_server, None)


class TestTensorboard(TrackerContract):
    @pytest.fixture
    def lab(self, tmp_path: Path) -> Lab:
        return TensorboardLab(tmp_path / "tensorboard")


class TestWandbOffline(TrackerContract):
    @pytest.fixture
    def lab(self, tmp_path: Path) -> Lab:
        return WandbLab(tmp_path / "wandb")


class TestCometOffline(TrackerContract):
    @pytest.fixture
    def lab(self, tmp_path: Path) -> Lab:
        return CometLab(tmp_path / "comet")
