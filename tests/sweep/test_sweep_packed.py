"""A whole sweep with many trials in each engine: what people are told, and numbers that do not depend on who shared a model."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import ray

import sweeper
from sweeper.engine.depot import FolderDepot
from sweeper.executors.local import LocalExecutor
from sweeper.records import Action, Decision, Report, ReportKind, TrialSpec, TrialState
from sweeper.spec.load import load_spec
from sweeper.study.read import StudyReader
from sweeper.sweep.home import Home
from sweeper.sweep.listen import Silent
from sweeper.sweep.prepare import prepare
from tests.conftest import SpecMaker
from tests.contracts.executor import Recorder
from tests.support.cli import sweeper_command


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One local cluster of two CPUs for all sweeps of this file."""
    before, os.environ["SWEEPER_CACHE"] = os.environ.get("SWEEPER_CACHE"), str(tmp_path_factory.mktemp("cache"))
    sigterm = signal.getsignal(signal.SIGTERM)
    ray.shutdown()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    signal.signal(signal.SIGTERM, sigterm)
    yield
    ray.shutdown()
    del os.environ["SWEEPER_CACHE"]
    if before is not None:
        os.environ["SWEEPER_CACHE"] = before


class Watcher(Silent):
    """Keeps what the sweep told."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.starts: list[TrialSpec] = []
        self.reports: list[tuple[Report, Decision]] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def started(self, trial: TrialSpec) -> None:
        self.starts.append(trial)

    def reported(self, report: Report, decision: Decision) -> None:
        self.reports.append((report, decision))


def numbers(report: Report) -> dict[str, float]:
    """What does not depend on time."""
    return dict(report.metrics)


def histories(home: Path, number: int) -> dict[str, list[tuple[int, float]]]:
    """Of one trial in MLflow, as its own client reads them: metric -> (step, value)."""
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=100)
    run = next(run for run in runs if run.data.tags.get("sweeper.trial") == str(number) and "mlflow.parentRunId" in run.data.tags)
    names = [name for name in run.data.metrics if name.split("/")[0] in ("validation", "train", "final")]
    return {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in names}


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, sentences_csv: Path
) -> tuple[Any, Watcher, dict[str, Any]]:
    from tests.support.specs import tiny_spec

    spec = tiny_spec(
        model_folder, sentences_csv, executor=None, search={"trials": 8, "startup_trials": 3, "rungs": [0.3], "seed": 3}
    )
    spec["executor"] = {"slots": 3}
    watcher = Watcher()
    return sweeper.run(spec, home=tmp_path_factory.mktemp("home"), listener=watcher), watcher, spec


def test_lora_is_packed_unless_told_and_people_read_how_many_shared_one_model(finished: tuple) -> None:
    result, watcher, spec = finished
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in result.trials)
    assert any(notice.startswith("2 engines of 3 slots") for notice in watcher.notices)
    assert (result.shared.kind, result.shared.engines, result.shared.slots, result.shared.most) == ("packed", 2, 3, 3)
    sentence = "8 trials on 2 engines; up to 3 shared one model."
    assert result.shared.sentence(len(result.trials)) == sentence
    assert sweeper.run(spec, home=result.home).shared == result.shared, "also when it is only shown"
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{result.home / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=100)
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    tags = {name: parent.data.tags[f"sweeper.{name}"] for name in ("executor", "engines", "slots", "trials_sharing_a_model")}
    assert tags == {"executor": "packed", "engines": "2", "slots": "3", "trials_sharing_a_model": "3"}


def test_a_trial_s_losses_equal_those_of_the_same_trial_run_by_local_alone(finished: tuple, tmp_path: Path) -> None:
    result, watcher, spec = finished
    ready = prepare(load_spec(spec), Home(tmp_path / "home"))
    alone = replace(ready.engine_setup(), slots=1)
    for trial in [trial for trial in watcher.starts if trial.number in (0, 2, 3)]:
        actions = {report.nominal: decision.action for report, decision in watcher.reports if report.trial == trial.number}
        source = Recorder([trial], partial(_as_before, actions))
        LocalExecutor(alone, FolderDepot(tmp_path / "depot")).run(source)
        here = [(r.nominal, numbers(r)) for r in source.reports if r.kind is not ReportKind.PROGRESS]
        kept = [r for r, _ in watcher.reports if r.trial == trial.number and r.kind is not ReportKind.PROGRESS]
        assert here == [(r.nominal, numbers(r)) for r in kept]
        shown = histories(result.home, trial.number)
        for name in ("validation/loss", "validation/accuracy"):
            assert shown[name] == [(nominal, metrics[name]) for nominal, metrics in here]
        # Progress reports, which come by the clock, carry one as well.
        assert {(nominal, metrics["train/loss"]) for nominal, metrics in here if "train/loss" in metrics} <= set(
            shown["train/loss"]
        )


def _as_before(actions: Mapping[int, Action], _: Recorder, report: Report) -> Action:
    return actions.get(report.nominal, Action.CONTINUE)


def told_of(home: Path, watcher: Watcher) -> Mapping[str, object]:
    """Everything that two equal sweeps have in common: parameters, reports, decisions with their evidence, the winner."""
    reader = StudyReader(f"sqlite:///{home / 'study.db'}")
    best = reader.best("tiny")
    return {
        "trials": [(t.number, t.state, dict(t.params), t.value, dict(t.metrics), t.reason) for t in reader.trials("tiny")],
        "starts": [(t.number, t.resume_from) for t in watcher.starts],
        "reports": [
            (r.trial, r.kind, r.nominal, numbers(r), d.action) for r, d in watcher.reports if r.kind is not ReportKind.PROGRESS
        ],
        "decisions": sorted((d.trial, d.nominal, d.action, d.reason, str(d.evidence)) for d in reader.decisions("tiny")),
        "winner": best.number if best is not None else None,
    }


def test_two_deterministic_runs_with_two_engines_are_equal_decisions_included(make_spec: SpecMaker, tmp_path: Path) -> None:
    search = {"deterministic": True, "trials": 10, "startup_trials": 3, "rungs": [0.3], "seed": 5, "min_trials": 2}
    spec = make_spec(executor=None, search=search, tracking=[])
    spec["executor"] = {"workers": 2, "slots": 2}
    told = []
    for name in ("one", "two"):
        watcher = Watcher()
        sweeper.run(spec, home=tmp_path / name, listener=watcher)
        told.append(told_of(tmp_path / name, watcher))
    assert told[0] == told[1]
    states = {state for _, state, *_ in told[0]["trials"]}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED}
    plan = StudyReader(f"sqlite:///{tmp_path / 'one' / 'study.db'}").plan("tiny")
    assert plan.spec["order"] == {"engines": 2, "slots": 2}


class Killer(Silent):
    """Kills the engine that first reports on a trial, once."""

    def __init__(self, trial: int) -> None:
        self.trial = trial
        self.killed = ""
        self.starts: list[TrialSpec] = []

    def started(self, trial: TrialSpec) -> None:
        self.starts.append(trial)

    def reported(self, report: Report, decision: Decision) -> None:
        if report.trial == self.trial and not self.killed and report.checkpoint:
            self.killed = report.worker
            os.kill(int(report.worker.rsplit(":", 1)[-1]), signal.SIGKILL)


def test_a_killed_engine_costs_no_trial_and_changes_no_number(finished: tuple, tmp_path: Path) -> None:
    _, watcher, spec = finished
    killer = Killer(1)
    result = sweeper.run({**spec, "search": {**spec["search"], "pruner": "none", "trials": 5}}, home=tmp_path, listener=killer)
    assert killer.killed
    assert not psutil.pid_exists(int(killer.killed.rsplit(":", 1)[-1]))
    assert {trial.state for trial in result.trials} == {TrialState.COMPLETE}
    assert max(trial.attempts for trial in result.trials) == 2
    for number in (0, 1, 2):
        kept = [r for r, _ in watcher.reports if r.trial == number and r.kind is not ReportKind.PROGRESS]
        again = {r.nominal: dict(r.metrics) for r in StudyReader(f"sqlite:///{tmp_path / 'study.db'}").reports("tiny", number)}
        assert all(again[r.nominal] == numbers(r) for r in kept)


def test_what_cannot_be_packed_goes_to_tune_with_a_sentence(make_spec: SpecMaker, tmp_path: Path) -> None:
    spec = make_spec(executor={"kind": "packed", "workers": 1}, training={"method": "full", "learning_rate": 1e-4}, space=None)
    spec |= {"space": {"learning_rate": [1e-4, 1e-3]}, "search": {"trials": 1}, "tracking": []}
    watcher = Watcher()
    result = sweeper.run(spec, home=tmp_path, listener=watcher)
    assert [trial.state for trial in result.trials] == [TrialState.COMPLETE]
    assert any("executor.kind packed is tune here: full fine-tuning changes every weight" in n for n in watcher.notices)
    assert result.shared is None


def test_validate_says_what_deterministic_cannot_promise(make_spec: SpecMaker, tmp_path: Path) -> None:
    import yaml

    spec = make_spec(executor={"kind": "packed", "cpus": 2}, search={"deterministic": True, "time": "1h"})
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(spec))
    said = " ".join(sweeper_command("validate", file, "--home", tmp_path).out.split())
    assert "with more than one thread losses are equal only within a tolerance" in said
    assert "ends the search by the clock" in said
