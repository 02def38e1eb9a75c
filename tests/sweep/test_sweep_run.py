"""A whole sweep on a tiny model: what a user finds afterwards with Optuna's and MLflow's own tools."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import mlflow
import optuna
import pytest

import sweeper
from sweeper.records import Decision, Outcome, Report, ReportKind, TrialSpec, TrialState
from sweeper.sweep.listen import Silent
from tests.support.specs import tiny_spec


class Watcher(Silent):
    """Keeps what the sweep told."""

    def __init__(self) -> None:
        self.starts: list[TrialSpec] = []
        self.reports: list[tuple[Report, Decision]] = []
        self.ends: list[tuple[int, Outcome, TrialState]] = []

    def started(self, trial: TrialSpec) -> None:
        self.starts.append(trial)

    def reported(self, report: Report, decision: Decision) -> None:
        self.reports.append((report, decision))

    def ended(self, trial: int, outcome: Outcome, state: TrialState) -> None:
        self.ends.append((trial, outcome, state))


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, sentences_csv: Path
) -> tuple[sweeper.SweepResult, Watcher, dict]:
    spec = tiny_spec(model_folder, sentences_csv, search={"trials": 8, "startup_trials": 3, "rungs": [0.3], "seed": 3})
    home = tmp_path_factory.mktemp("home")
    watcher = Watcher()
    return sweeper.run(spec, home=home, listener=watcher), watcher, spec


def test_plain_optuna_reads_true_states(finished: tuple) -> None:
    result, _, _ = finished
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{result.home / 'study.db'}")
    states = Counter(trial.state.name for trial in study.trials)
    assert states["COMPLETE"] + states["PRUNED"] == 8
    assert states["PRUNED"] >= 1
    for trial in study.trials:
        if trial.state.name == "PRUNED":
            assert trial.intermediate_values


def test_trial_zero_is_the_default_and_completes(finished: tuple) -> None:
    result, watcher, _ = finished
    first = watcher.starts[0]
    assert first.number == 0
    assert (first.params["learning_rate"], first.params["batch_size"], first.params["dropout"]) == (0.002, 8, 0.0)
    assert result.default is not None
    assert result.default.state is TrialState.COMPLETE


def test_sampled_values_stay_in_the_space(finished: tuple) -> None:
    _, watcher, _ = finished
    for trial in watcher.starts[1:]:
        assert 1e-4 <= trial.params["learning_rate"] <= 2e-2
        assert trial.params["batch_size"] in (4, 8, 16)
        assert 0 <= trial.params["dropout"] <= 0.2


def test_plain_mlflow_reads_a_child_run_a_trial(finished: tuple) -> None:
    result, _, _ = finished
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{result.home / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=100)
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert (len(parents), len(children)) == (1, 8)
    assert {run.info.status for run in runs} == {"FINISHED"}
    states = Counter(run.data.tags["sweeper.state"] for run in children)
    assert states == Counter(str(trial.state) for trial in result.trials)
    for run in children:
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "validation/accuracy")]
        assert steps
        assert steps == sorted(set(steps))
    assert [run.data.tags["sweeper.trial"] for run in children if run.data.tags.get("sweeper.winner") == "true"] == [
        str(result.best.number)
    ]


def test_adapter_of_the_winner_loads_in_peft_with_its_validation_loss(finished: tuple) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from sweeper.data.tokens import TokenSet

    result, _, spec = finished
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(spec["model"]), str(result.adapter)).eval()
    rows = TokenSet(next(result.home.glob("data/*/*/validation")))
    total = count = 0.0
    for index in range(len(rows)):
        row = rows.row(index)
        ids = torch.from_numpy(row.ids.astype("int64"))[None]
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        wanted = torch.from_numpy(row.target[1:].copy())
        total += float(losses[wanted].sum())
        count += int(wanted.sum())
    assert result.best.metrics["validation/loss"] == pytest.approx(total / count, rel=1e-4)


def test_a_second_run_only_shows_the_result(finished: tuple) -> None:
    result, _, spec = finished
    watcher = Watcher()
    again = sweeper.run(spec, home=result.home, listener=watcher)
    assert not watcher.starts
    assert again.best.number == result.best.number
    assert [t.state for t in again.trials] == [t.state for t in result.trials]


def test_more_trials_may_be_asked_for_later(finished: tuple) -> None:
    result, _, spec = finished
    watcher = Watcher()
    more = {**spec, "search": {**spec["search"], "trials": 9}}
    again = sweeper.run(more, home=result.home, listener=watcher)
    assert [trial.number for trial in watcher.starts] == [8]
    assert len(again.trials) == 9


def test_another_space_under_the_same_name_is_refused(finished: tuple) -> None:
    result, _, spec = finished
    other = {**spec, "space": {"learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}}}
    with pytest.raises(sweeper.UserError, match=r"tiny.*space"):
        sweeper.run(other, home=result.home)


def test_test_rows_are_sealed_and_reach_no_token_file(finished: tuple) -> None:
    import pyarrow.parquet as pq

    result, _, _ = finished
    sealed = [path for path in result.home.glob("data/*/sealed/*") if path.suffix == ".parquet"]
    test_ids = {x for path in sealed for x in pq.read_table(path).column("row_id").to_pylist()}
    assert test_ids
    seen = {x for path in result.home.glob("data/*/*/*/rows.parquet") for x in pq.read_table(path).column("row_id").to_pylist()}
    assert not test_ids & seen


def test_every_rung_report_is_answered_and_pruned_trials_stop_there(finished: tuple) -> None:
    _, watcher, _ = finished
    rungs = {report.trial: decision for report, decision in watcher.reports if report.kind is ReportKind.RUNG}
    for number, _, state in watcher.ends:
        assert rungs[number].action.value == ("stop" if state is TrialState.PRUNED else "continue")


DRIVER = """
import sys, json, sweeper
from sweeper.sweep.listen import Silent
class Say(Silent):
    def reported(self, report, decision): print("report", report.trial, report.nominal, flush=True)
try:
    result = sweeper.run(json.loads(sys.argv[1]), home=sys.argv[2], listener=Say())
    print("finished", len(result.trials))
except sweeper.Interrupted as stopped:
    print("waiting", *stopped.waiting)
    sys.exit(130)
"""


def _driver(spec: dict, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", DRIVER, json.dumps(spec), str(home)], stdout=subprocess.PIPE, text=True)


def _until_report(process: subprocess.Popen[str], trial: int) -> None:
    assert process.stdout is not None
    deadline = time.monotonic() + 120
    for line in process.stdout:
        if line.startswith(f"report {trial} "):
            return
        assert time.monotonic() < deadline
    pytest.fail("the driver ended before the report came")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_sweep_goes_on_under_the_same_numbers(kind: signal.Signals, make_spec, tmp_path: Path) -> None:
    spec = make_spec(training={"rank": 4, "batch_size": 8, "learning_rate": 0.002, "epochs": 4})
    process = _driver(spec, tmp_path)
    _until_report(process, 1)
    os.kill(process.pid, kind)
    process.communicate(timeout=120)
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    before = {t.number: (t.state.name, dict(t.params)) for t in optuna.load_study(study_name="tiny", storage=storage).trials}
    if kind is not signal.SIGKILL:
        assert process.returncode == 130
        assert "RUNNING" not in {state for state, _ in before.values()}
    watcher = Watcher()
    result = sweeper.run(spec, home=tmp_path, listener=watcher)
    assert len(result.trials) == 6
    assert all(trial.state.is_finished() for trial in result.trials)
    study = optuna.load_study(study_name="tiny", storage=storage)
    for number, (state, params) in before.items():
        assert study.trials[number].params == params
        if state in ("COMPLETE", "PRUNED"):
            assert number not in {trial.number for trial in watcher.starts}
    if kind is not signal.SIGKILL:
        gone_on = [trial for trial in watcher.starts if before.get(trial.number, ("", {}))[0] == "WAITING"]
        assert gone_on
        assert all(trial.resume_from for trial in gone_on)


def test_a_second_driver_is_told_who_runs_the_sweep(make_spec, tmp_path: Path) -> None:
    spec = make_spec(training={"rank": 4, "batch_size": 8, "learning_rate": 0.002, "epochs": 20})
    process = _driver(spec, tmp_path)
    try:
        _until_report(process, 0)
        with pytest.raises(sweeper.UserError, match=str(process.pid)):
            sweeper.run(spec, home=tmp_path)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_constraints_that_nobody_meets_are_named(make_spec, tmp_path: Path) -> None:
    spec = make_spec(objective={"metric": "accuracy", "constraints": {"loss": {"max": 0.01}}}, search={"trials": 2}, tracking=[])
    result = sweeper.run(spec, home=tmp_path)
    assert result.best is None
    assert "2 trials have completed" in result.verdict()
    assert "loss at most 0.01" in result.verdict()


def test_several_metrics_have_a_front_and_prune_nothing(make_spec, tmp_path: Path) -> None:
    spec = make_spec(objective={"metric": ["accuracy", "loss"]}, search={"trials": 4}, tracking=[])
    result = sweeper.run(spec, home=tmp_path)
    assert {trial.state for trial in result.trials} == {TrialState.COMPLETE}
    assert result.front
    for one in result.front:
        a, b = one.values
        assert not any(t.values[0] >= a and t.values[1] <= b and t.values != one.values for t in result.trials)


def test_the_winner_is_used_from_another_folder(
    make_spec, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_folder.parent)
    sweeper.run(make_spec(model=model_folder.name, search={"trials": 1}, tracking=[]), home=tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    answer = sweeper.predict_text(sweeper.find(home=tmp_path / "home"), "the film was lovely")
    assert answer.answer in ("positive", "negative")
    assert sum(answer.probabilities.values()) == pytest.approx(1.0, abs=1e-5)


def test_where_the_default_is_best_the_next_best_stands_beside_it(make_spec, tmp_path: Path) -> None:
    hopeless = {"learning_rate": {"low": 1e-8, "high": 1e-7, "log": True}}
    spec = make_spec(space=None, search={"trials": 2, "pruner": "none"}, objective={"metric": "loss"}, tracking=[])
    result = sweeper.run({**spec, "space": hopeless}, home=tmp_path)
    assert result.best.number == 0
    assert (result.comparison.base_trial, result.comparison.other_trial) == (0, 1)
    assert "The default configuration is the best one found. Next comes trial 1" in result.verdict()
    assert "interval" in result.verdict()
