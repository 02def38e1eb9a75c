"""Trackers are built from a spec; what is missing is said in one sentence."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sweeper.errors import BusyError, ResourceError, UserError
from sweeper.spec.mask import mask
from sweeper.spec.models import TrackerSpec
from sweeper.tracking.factory import build_trackers
from sweeper.tracking.privacy import QUIET, quiet
from sweeper.tracking.serve import dashboard_command, free_port, mlflow_command


def test_the_default_is_mlflow_in_the_home(tmp_path: Path) -> None:
    (tracker,) = build_trackers([TrackerSpec()], tmp_path / "home", "demo")
    assert (tracker.kind, tracker.key) == ("mlflow", "mlflow")
    run = tracker.start_sweep("demo", {}, {})
    assert tracker.knows(run)
    assert not tracker.knows("0" * 32)
    assert (tmp_path / "home" / "mlflow.db").exists()
    assert list((tmp_path / "home" / "artifacts" / "demo").rglob("spec.yaml"))
    assert tracker.url(run) == f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}"


def test_several_trackers_keep_the_spec_s_order_and_have_keys_of_their_own(tmp_path: Path) -> None:
    specs = [
        TrackerSpec(kind="wandb", mode="offline"),
        TrackerSpec(kind="tensorboard"),
        TrackerSpec(kind="tensorboard", uri=str(tmp_path / "elsewhere")),
        TrackerSpec(kind="comet", mode="offline", project="other"),
    ]
    trackers = build_trackers(specs, tmp_path, "demo")
    assert [tracker.kind for tracker in trackers] == ["wandb", "tensorboard", "tensorboard", "comet"]
    assert len({tracker.key for tracker in trackers}) == 4


def test_a_silent_server_is_one_sentence_without_its_password(tmp_path: Path) -> None:
    port = free_port(0)
    with pytest.raises(ResourceError, match="no MLflow server answers at http://me:") as error:
        build_trackers([TrackerSpec(uri=f"http://me:s3cret@127.0.0.1:{port}")], tmp_path, "demo")
    assert "s3cret" not in str(error.value)
    assert "mlflow server" in str(error.value)


def test_a_database_out_of_reach_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    nobody = free_port(0)
    for uri in (f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}", f"postgresql+psycopg://me:s3cret@127.0.0.1:{nobody}/mlflow"):
        with pytest.raises(ResourceError, match="cannot be opened") as error:
            build_trackers([TrackerSpec(uri=uri)], tmp_path, "demo")
        assert "\n" not in str(error.value)
        assert "s3cret" not in str(error.value)


def test_a_folder_is_no_mlflow_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an MLflow store is sqlite:///FILE"):
        build_trackers([TrackerSpec(uri="./mlruns")], tmp_path, "demo")


def test_an_experiment_in_the_trash_is_one_sentence(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("demo"))
    with pytest.raises(ResourceError, match=r"lies in MLflow's trash.*mlflow experiments restore"):
        build_trackers([TrackerSpec(uri=uri)], tmp_path, "demo")


def test_a_missing_extra_names_the_command(tmp_path: Path) -> None:
    # A real interpreter that cannot find wandb: site-packages stay, a finder in front refuses the name.
    code = """
import importlib.abc, sys
class Without(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "wandb":
            raise ModuleNotFoundError(name)
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "wandb" else found(name, *rest)
sys.meta_path.insert(0, Without())
from pathlib import Path
from sweeper.errors import UserError
from sweeper.spec.models import TrackerSpec
from sweeper.tracking.factory import build_trackers
try:
    build_trackers([TrackerSpec(kind="wandb")], Path(sys.argv[1]), "demo")
except UserError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert "pip install 'sweeper[wandb]'" in said


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://me:s3cret@db:5432/optuna", "postgresql://me:***@db:5432/optuna"),
        ("postgresql+psycopg://me:p@ss:w0rd@db/x", "postgresql+psycopg://me:***@db/x"),
        ("at http://u:p@host/a and redis://:q@cache/0", "at http://u:***@host/a and redis://:***@cache/0"),
        ("https://host/rows.csv?x=1&token=abc&y=2", "https://host/rows.csv?x=1&token=***&y=2"),
        ("sqlite:///home/me/study.db", "sqlite:///home/me/study.db"),
        ("me@example.org wrote: fine", "me@example.org wrote: fine"),
    ],
)
def test_passwords_in_urls_are_masked(text: str, masked: str) -> None:
    assert mask(text) == masked


def test_quiet_leaves_what_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    quiet()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    for name in QUIET:  # monkeypatch cannot know of what quiet() has set
        if name != "RAY_USAGE_STATS_ENABLED":
            monkeypatch.delenv(name)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BusyError, match=f"port {port} on 127.0.0.1 is in use"):
            free_port(port)
    assert free_port(port) == port
    with pytest.raises(ResourceError, match="port is 70000"):
        free_port(70000)


def test_commands_bind_this_host_and_hide_addresses(tmp_path: Path) -> None:
    url = "postgresql://me:s3cret@db/optuna"
    for command, environment in (mlflow_command(url, tmp_path, 5001), dashboard_command(url, 8081)):
        line = " ".join(command)
        assert "127.0.0.1" in line
        assert "s3cret" not in line
        assert url in environment.values()
        assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert mlflow_command(url, None)[1]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_the_dashboard_answers_on_a_study_database(tmp_path: Path) -> None:
    import time
    import urllib.request

    import optuna

    url = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.create_study(storage=url, study_name="demo")
    port = free_port(0)
    command, environment = dashboard_command(url, port)
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            assert server.poll() is None
            try:
                body = urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=2).read().decode()
                break
            except OSError:
                time.sleep(0.25)
        assert '"demo"' in body
    finally:
        server.terminate()
        server.wait(10)
