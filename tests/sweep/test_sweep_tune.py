"""A whole sweep on Ray Tune with two workers, and one that keeps its study in PostgreSQL."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import optuna
import psutil
import pyarrow.parquet as pq
import pytest
import ray

import sweeper
from sweeper.records import Decision, Report, TrialSpec, TrialState
from sweeper.sweep.listen import Silent
from tests.conftest import SpecMaker
from tests.support.cli import sweeper_command


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A worker's own folder, and no Ray left from another test."""
    ray.shutdown()
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    ray.shutdown()


class Killer(Silent):
    """Kills the process of the worker that first reports on a trial, once."""

    def __init__(self, trial: int) -> None:
        self.trial = trial
        self.killed = False
        self.starts: list[TrialSpec] = []

    def started(self, trial: TrialSpec) -> None:
        self.starts.append(trial)

    def reported(self, report: Report, decision: Decision) -> None:
        if report.trial == self.trial and not self.killed:
            pid = int(report.worker.rsplit(":", 1)[-1])
            assert "ray::" in " ".join(psutil.Process(pid).cmdline())
            os.kill(pid, signal.SIGKILL)
            self.killed = True


def test_two_workers_finish_a_sweep_and_one_killed_costs_one_trial(make_spec: SpecMaker, tmp_path: Path, cache: Path) -> None:
    spec = make_spec(executor={"kind": "tune", "workers": 2, "cpus": 1})
    killer = Killer(2)
    result = sweeper.run(spec, home=tmp_path / "home", listener=killer)
    assert killer.killed
    states = {trial.number: trial.state for trial in result.trials}
    assert len(states) == 6
    assert states[2] is TrialState.FAIL
    assert "worker" in result.trials[2].reason
    assert all(state in (TrialState.COMPLETE, TrialState.PRUNED) for number, state in states.items() if number != 2)
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{tmp_path / 'home' / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == [str(trial.state) for trial in result.trials]
    assert len({trial.worker for trial in result.trials}) >= 2

    # What the workers were handed holds the training rows, but no row of the sealed test.
    home = tmp_path / "home"
    sealed = [x for path in home.glob("data/*/sealed/*.parquet") for x in pq.read_table(path).to_pylist()]
    files = [path for path in cache.rglob("*") if path.is_file()]
    seen = [x for path in files if path.name == "rows.parquet" for x in pq.read_table(path).to_pylist()]
    assert len(sealed) > 20
    assert {row["row_id"] for row in seen} & {x for path in home.glob("data/*/*/train/rows.parquet") for x in _ids(path)}
    assert not {row["row_id"] for row in seen} & {row["row_id"] for row in sealed}
    assert not {row["text"] for row in seen} & {row["text"] for row in sealed}
    for path in files:
        content = path.read_bytes()
        assert not any(row["text"].encode() in content for row in sealed), path


def _ids(path: Path) -> list[str]:
    ids: list[str] = pq.read_table(path).column("row_id").to_pylist()
    return ids


def test_a_study_in_postgresql_is_found_again_by_its_name(make_spec: SpecMaker, tmp_path: Path, postgres: str) -> None:
    spec = make_spec(storage=postgres, search={"trials": 3})
    result = sweeper.run(spec, home=tmp_path / "home")
    study = optuna.load_study(study_name="tiny", storage=postgres)
    assert [trial.state.name for trial in study.trials] == [str(trial.state) for trial in result.trials]
    assert (tmp_path / "home" / "stores.json").stat().st_mode & 0o077 == 0
    ran = sweeper_command("status", "tiny", "--home", tmp_path / "home")
    assert ran.code == 0
    assert "COMPLETE" in ran.out
