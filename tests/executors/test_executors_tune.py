"""The Ray Tune executor: the contract, and what is its own: workers that die, stay warm, and never see the driver's home."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from sweeper.errors import ModelError
from sweeper.executors.base import EngineFactory
from sweeper.executors.replay import Replay
from sweeper.executors.tune import TuneExecutor
from sweeper.records import Ending, Executor, Outcome, Report, ReportKind, Wait
from sweeper.spec.models import ExecutorSpec
from tests.contracts.executor import Action, Curves, ExecutorContract, Make, Recorder, pids, setup, trial
from tests.contracts.terminal import check_ctrl_c
from tests.support.engines import Faulty, Refusing, Spying


@pytest.fixture
def depot_root(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def make(tmp_path: Path, depot_root: Path, ray_cluster: Path) -> Make:
    def build(factory: EngineFactory) -> Executor:
        return TuneExecutor(setup(tmp_path), depot_root, ExecutorSpec(workers=2), factory)

    return build


class TestTuneExecutor(ExecutorContract):
    @pytest.fixture
    def make(self, make: Make) -> Make:
        return make


def test_a_killed_worker_costs_its_own_trial_and_no_other(make: Make, tmp_path: Path) -> None:
    log = tmp_path / "pids"

    def answer(source: Recorder, report: Report) -> Action:
        if report.trial == 0 and report.nominal == 20 and report.kind is ReportKind.EVALUATION:
            os.kill(pids(log)[0][-1], signal.SIGKILL)
        return Action.CONTINUE

    source = Recorder([trial(0), trial(1), trial(2)], answer)
    make(Replay(Curves(str(log)), 0.5)).run(source)
    assert source.endings() == {0: Ending.FAILED, 1: Ending.COMPLETED, 2: Ending.COMPLETED}
    assert dict(source.ends)[0].reason == "worker died"
    assert Counter(number for number, _ in source.ends) == {0: 1, 1: 1, 2: 1}


def test_an_error_that_no_engine_may_raise_is_that_trial_s_matter(make: Make) -> None:
    source = Recorder([trial(0), trial(1)])
    make(Replay(Faulty(), 0.1)).run(source)
    assert source.endings() == {0: Ending.FAILED, 1: Ending.COMPLETED}
    assert dict(source.ends)[0].reason == "ZeroDivisionError: a bug in the engine"


class GivesBack(Recorder):
    """Queues an interrupted trial again, as a study does, and lets time go by after trial 0."""

    def __init__(self, log: Path) -> None:
        super().__init__([trial(0)])
        self.log = log

    def on_end(self, trial_number: int, outcome: Outcome) -> None:
        super().on_end(trial_number, outcome)
        if trial_number == 0:
            os.kill(pids(self.log)[0][-1], signal.SIGKILL)
            time.sleep(0.3)
            self.queue.extend([Wait(), trial(1)])
        elif outcome.ending is Ending.PREEMPTED:
            self.queue.append(self.given[trial_number])


def test_a_trial_whose_worker_died_before_it_began_is_given_back(make: Make, tmp_path: Path) -> None:
    source = GivesBack(tmp_path / "pids")
    make(Replay(Curves(str(source.log)))).run(source)
    assert source.endings() == {0: Ending.COMPLETED, 1: Ending.COMPLETED}
    assert Ending.FAILED not in {outcome.ending for _, outcome in source.ends}


def test_a_worker_stays_warm_between_trials(tmp_path: Path, depot_root: Path, ray_cluster: Path) -> None:
    log = tmp_path / "pids"
    source = Recorder([trial(0), trial(1), trial(2)])
    TuneExecutor(setup(tmp_path), depot_root, ExecutorSpec(workers=1), Replay(Curves(str(log)))).run(source)
    assert source.most_running == 1
    assert len({pid for seen in pids(log).values() for pid in seen}) == 1


def test_workers_read_copies_of_their_own_and_the_user_s_module(
    tmp_path: Path, depot_root: Path, ray_cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "code" / "users_metrics"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "scores.py").write_text("def half(values):\n    return values[0] / 2\n")
    monkeypatch.syspath_prepend(tmp_path / "code")
    given = replace(setup(tmp_path / "home"), metrics=("loss", "users_metrics.scores:half"))
    (tmp_path / "home" / "test").mkdir()
    (tmp_path / "home" / "test" / "info.json").write_text("sealed")
    (tmp_path / "home" / "model" / "pytorch_model.bin").write_text("the same weights again")
    log = tmp_path / "seen.json"
    source = Recorder([trial(0)])
    TuneExecutor(given, depot_root, ExecutorSpec(workers=1), Spying(str(log))).run(source)
    assert source.endings() == {0: Ending.COMPLETED}
    seen = json.loads(log.read_text())
    for place in (seen["model"][0], seen["train"][0], seen["validation"]):
        assert Path(place).is_relative_to(ray_cluster)
    assert seen["train"][1] == '{"side": "train"}'
    assert seen["model"][1] == ["info.json"]
    assert (seen["metric"], seen["device"], seen["threads"], seen["omp"]) == (2.0, "cpu", 1, "1")
    assert not any(b"sealed" in p.read_bytes() for p in ray_cluster.rglob("*") if p.is_file())


def test_a_killed_porter_costs_nothing(make: Make, depot_root: Path) -> None:
    def answer(source: Recorder, report: Report) -> Action:
        if report.nominal == 20:
            killed.extend(_kill("ray::Porter"))
        return Action.CONTINUE

    killed: list[int] = []
    source = Recorder([trial(0)], answer)
    make(Replay(Curves(), 0.2)).run(source)
    assert killed
    assert source.endings() == {0: Ending.COMPLETED}
    assert (depot_root / str(dict(source.ends)[0].adapter)).is_dir()


def _kill(title: str) -> list[int]:
    found = [p for p in psutil.Process().children(recursive=True) if "".join(p.cmdline()).startswith(title)]
    for process in found:
        process.kill()
    return [process.pid for process in found]


def test_storage_path_takes_the_files_in_place_of_the_home(tmp_path: Path, depot_root: Path, ray_cluster: Path) -> None:
    source = Recorder([trial(0)])
    spec = ExecutorSpec(workers=1, storage_path=str(tmp_path / "shared"))
    TuneExecutor(setup(tmp_path), depot_root, spec, Replay(Curves())).run(source)
    adapter = dict(source.ends)[0].adapter
    assert adapter is not None
    assert (tmp_path / "shared" / adapter / "replay.json").is_file()
    assert not depot_root.exists()


def test_a_model_that_no_worker_can_use_ends_the_sweep_with_its_sentence(make: Make) -> None:
    source = Recorder([trial(0), trial(1)])
    with pytest.raises(ModelError, match="has no config"):
        make(Refusing()).run(source)
    assert source.running == set()
    assert set(source.endings().values()) == {Ending.PREEMPTED}


def test_ctrl_c_in_a_terminal_preempts_all_and_leaves_no_process(tmp_path: Path) -> None:
    """Here Ray is the executor's own."""
    check_ctrl_c(tmp_path, "sweeper.executors.tune:TuneExecutor", slots=1, trials=2)
