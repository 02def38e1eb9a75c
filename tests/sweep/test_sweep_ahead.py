"""Engines are begun while model and rows are prepared: only for a sweep that will train, and nothing is left however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

import sweeper
from sweeper.executors import factory
from sweeper.sweep import ahead
from sweeper.sweep.ahead import begin_ahead
from sweeper.sweep.home import Home
from tests.conftest import SpecMaker

SWEEPER = "from sweeper.cli import command; command()"


@dataclass
class Driver:
    """`sweeper run` as a person starts it, and all processes that come of it, which its environment marks."""

    spec: Path
    home: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    seen: set[str] = field(default_factory=set)

    def start(self) -> None:
        root = str(Path(__file__).parents[2])
        self._process = subprocess.Popen(
            [sys.executable, "-c", SWEEPER, "run", str(self.spec), "--home", str(self.home)],
            env={**os.environ, "MARK": self.mark, "SWEEPER_CACHE": str(self.home / "cache"), "PYTHONPATH": root},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, name: str) -> None:
        until = time.monotonic() + 90
        while name not in self.names():
            assert self._process.poll() is None, self._process.stdout and self._process.stdout.read()
            assert time.monotonic() < until
            time.sleep(0.1)

    def interrupt(self) -> None:
        os.killpg(self._process.pid, signal.SIGINT)

    def end(self) -> tuple[int, str]:
        """Exit code and output; which of its processes were seen meanwhile is kept."""
        until = time.monotonic() + 400
        while self._process.poll() is None and time.monotonic() < until:
            self.seen |= self.names()
            time.sleep(0.2)
        out, _ = self._process.communicate(timeout=10)
        return self._process.returncode, out

    def names(self) -> set[str]:
        found = set()
        for process in psutil.process_iter():
            try:
                if process.environ().get("MARK") == self.mark:
                    found.add(process.name())
            except psutil.Error:
                continue
        return found

    def left(self) -> set[str]:
        """What is still there of it once the kernel and Ray had a moment."""
        until = time.monotonic() + 15
        while (found := self.names()) and time.monotonic() < until:
            time.sleep(0.2)
        return found


@pytest.fixture
def packed(make_spec: SpecMaker) -> dict[str, Any]:
    return {**make_spec(search={"trials": 2, "rungs": []}, tracking=[]), "executor": {"slots": 2}}


def write(folder: Path, spec: dict[str, Any]) -> Path:
    file = folder / "spec.yaml"
    file.write_text(yaml.safe_dump(spec))
    return file


def test_a_mistake_in_the_rows_is_told_and_the_cluster_that_was_begun_goes(packed: dict[str, Any], tmp_path: Path) -> None:
    packed["data"]["columns"] = {"text": "text", "label": "no_such_column"}
    driver = Driver(write(tmp_path, packed), tmp_path / "home")
    driver.start()
    code, out = driver.end()
    assert code == 2, out
    assert "no_such_column" in out
    assert "Traceback" not in out
    assert "raylet" in driver.seen, "it was begun"
    assert driver.left() == set()


def interrupted(spec: dict[str, Any], folder: Path, process: str) -> str:
    """What a sweep says that gets Ctrl-C once `process` is there; nothing of it is left."""
    driver = Driver(write(folder, spec), folder / "home")
    driver.start()
    driver.wait_for(process)
    driver.interrupt()
    code, out = driver.end()
    assert code == 130, out
    assert driver.left() == set()
    return out


def test_ctrl_c_during_preparation_leaves_nothing_behind(packed: dict[str, Any], tmp_path: Path) -> None:
    assert "begin again with: sweeper run" in interrupted(packed, tmp_path, "raylet")


def test_ctrl_c_during_training_says_how_to_go_on_and_leaves_nothing_behind(packed: dict[str, Any], tmp_path: Path) -> None:
    packed["search"]["trials"] = 200
    out = interrupted(packed, tmp_path, "ray::EngineActor.work")
    assert out.strip().splitlines()[-1].startswith("go on with: sweeper run")


def test_a_sweep_trains_on_what_was_begun_and_is_shown_again_without_ray(packed: dict[str, Any], tmp_path: Path) -> None:
    first = Driver(write(tmp_path, packed), tmp_path / "home")
    first.start()
    code, out = first.end()
    assert code == 0, out
    assert "raylet" in first.seen
    assert first.left() == set()

    again = Driver(first.spec, first.home)
    again.start()
    code, out = again.end()
    assert code == 0, out
    assert "raylet" not in again.seen
    told = sweeper.status(sweeper.find(home=first.home))
    assert told is not None


@pytest.fixture
def begins(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Specs that a cluster is begun for."""
    asked: list[object] = []
    monkeypatch.setattr("sweeper.executors.begun.begin_cluster", asked.append)
    return asked


def test_only_a_sweep_that_will_train_begins_a_cluster(make_spec: SpecMaker, tmp_path: Path, begins: list[object]) -> None:
    def asked(**sections: Any) -> bool:
        before = len(begins)
        begin_ahead(sweeper.load_spec({**spec, **sections}), Home.at(tmp_path))
        return len(begins) > before

    spec = make_spec(search={"trials": 2, "rungs": []}, tracking=[])
    assert not asked(), "local"
    assert asked(executor={})
    assert not asked(executor={"address": "127.0.0.1:6379"})
    assert not asked(executor={"kind": "tune"})
    assert not asked(executor={}, model="./no/such/model")
    assert not asked(executor={}, data={**spec["data"], "path": str(tmp_path / "nothing.csv")})
    assert not asked(executor={}, search={**spec["search"], "deterministic": True})

    sweeper.run(spec, home=tmp_path)
    assert not asked(executor={}), "finished"
    assert asked(executor={}, search={**spec["search"], "trials": 3})


def test_a_model_that_is_not_packed_begins_no_cluster(make_spec: SpecMaker, tmp_path: Path, begins: list[object]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    factory.begin(sweeper.load_spec(make_spec(executor=None, model=str(tmp_path))))
    assert begins == []
    assert ahead.begin is factory.begin
