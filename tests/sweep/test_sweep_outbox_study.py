"""A real study's ledger told to a real MLflow store, while the driver writes: both say the same in the end."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from mlflow import MlflowClient

from sweeper.errors import FencedError
from sweeper.records import Ending, Outcome
from sweeper.study.gateway import Gateway
from sweeper.study.tables import FENCE
from sweeper.sweep.outbox import Outbox
from sweeper.tracking.memory import MemoryTracker
from sweeper.tracking.mlflow import MlflowTracker
from tests.study.study_helpers import make_plan, next_trial, optuna_trials, quality, train

STARTED = {"spec": {"name": "study", "model": {"name": "tiny"}}, "tags": {"sweeper.study": "study"}}


def test_mlflow_and_the_study_database_agree(tmp_path: Path) -> None:
    url, store = f"sqlite:///{tmp_path / 'study.db'}", f"sqlite:///{tmp_path / 'mlflow.db'}"
    notices: list[str] = []
    gateway = Gateway.open(url, make_plan(search={"trials": 7}), driver="test")
    gateway.ledger.add_event("sweep_started", None, STARTED, key="sweep_started")
    memory = MemoryTracker()
    trackers = [MlflowTracker(store, "study", tmp_path / "artifacts"), memory]
    outbox = Outbox(gateway.ledger, trackers, tmp_path, notice=notices.append)
    outbox.start()
    for number in range(7):
        trial = next_trial(gateway)
        if number == 3:
            gateway.end(number, Outcome(Ending.FAILED, "loss is NaN at step 7", metrics={"validation/loss": float("nan")}))
        else:
            train(gateway, trial, lambda nominal, trial=trial: quality(trial.params) * nominal / 100)
    gateway.ledger.add_event("sweep_ended", None, {"finished": True, "reason": ""}, key="sweep_ended")
    assert outbox.drain(60)
    assert outbox.url() == store
    outbox.stop()
    gateway.close()

    assert notices == []
    client = MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    children = {int(run.data.tags["sweeper.trial"]): run for run in runs if "sweeper.trial" in run.data.tags}
    assert len(runs) == len(children) + 1
    told = optuna_trials(url)
    assert {"COMPLETE", "PRUNED", "FAIL"} == {trial.state.name for trial in told}
    assert sorted(children) == [trial.number for trial in told]
    for trial in told:
        child = children[trial.number]
        assert child.data.tags["sweeper.state"] == trial.state.name
        assert child.info.status == ("FAILED" if trial.state.name == "FAIL" else "FINISHED")
        history = client.get_metric_history(child.info.run_id, "validation/accuracy")
        assert {point.step: point.value for point in history} == trial.intermediate_values
        for name, value in trial.params.items():
            assert float(child.data.params[name]) == value
    assert len(memory.runs) == len(runs)


def test_the_pump_of_a_driver_that_was_taken_over_falls_silent(tmp_path: Path) -> None:
    notices: list[str] = []
    gateway = Gateway.open(f"sqlite:///{tmp_path / 'study.db'}", make_plan(), driver="test")
    gateway.ledger.add_event("sweep_started", None, STARTED, key="sweep_started")
    with closing(sqlite3.connect(tmp_path / "study.db")) as other, other:
        other.execute(f"UPDATE {FENCE.name} SET term = term + 1")
    tracker = MemoryTracker()
    outbox = Outbox(gateway.ledger, [tracker], tmp_path, notice=notices.append)
    outbox.start()
    assert not outbox.drain(10)
    outbox.stop()
    assert (tracker.runs, notices) == ({}, [])
    with suppress(FencedError):
        gateway.close()
