"""A sweep whose budget ends mid-way: what it leaves, what it says, and how it goes on."""

from __future__ import annotations

import time
from pathlib import Path

import mlflow
import optuna
import pytest
import yaml

import sweeper
from sweeper.errors import SpecError
from sweeper.records import Outcome, TrialSpec, TrialState
from sweeper.sweep.listen import Silent
from tests.support.cli import Ran, sweeper_command

LONG = {"rank": 4, "batch_size": 8, "learning_rate": 0.002, "epochs": 12}


class Watcher(Silent):
    """Notes when things were said."""

    def __init__(self) -> None:
        self.notices: list[tuple[float, str]] = []
        self.ends: list[tuple[float, int, TrialState]] = []
        self.starts: list[tuple[int, str | None]] = []

    def notice(self, text: str) -> None:
        self.notices.append((time.monotonic(), text))

    def started(self, trial: TrialSpec) -> None:
        self.starts.append((trial.number, trial.resume_from))

    def ended(self, trial: int, outcome: Outcome, state: TrialState) -> None:
        self.ends.append((time.monotonic(), trial, state))


def _seconds_of_a_trial(spec: dict, home: Path) -> float:
    """Device seconds of the default trial alone, on this machine at this hour."""
    search = {**spec["search"], "trials": 1, "budget": {}}
    result = sweeper.run({**spec, "name": "yardstick", "search": search, "tracking": []}, home=home)
    return result.trials[0].seconds


def _ended_in_its_second_trial(spec: dict, folder: Path) -> tuple[Path, Ran]:
    """The home of a sweep of `spec` whose budget ended there, and what the command said; again where the machine's pace changed."""
    for attempt in range(4):
        home = folder / str(attempt)
        one = _seconds_of_a_trial(spec, home)
        spec["search"]["budget"] = {"gpu_hours": 1.5 * one / 3600}
        file = home / "spec.yaml"
        file.write_text(yaml.safe_dump(spec))
        ran = sweeper_command("run", file, "--home", home)
        assert ran.code == 0, ran.out + ran.err
        states = [trial.state for trial in sweeper.find("tiny", home=home).reader().trials("tiny")]
        assert set(states) <= {TrialState.COMPLETE, TrialState.WAITING}
        if states == [TrialState.COMPLETE, TrialState.WAITING]:
            return home, ran
    pytest.fail(f"the pace of this machine changed by half each time; at last it left {states}")


def test_a_budget_that_ends_mid_way_leaves_a_winner_and_trials_that_go_on(make_spec, tmp_path: Path) -> None:
    spec = make_spec(training=LONG, search={"trials": 4, "pruner": "none"}, executor={"kind": "local", "slots": 1})
    home, first = _ended_in_its_second_trial(spec, tmp_path)
    said = " ".join(first.out.split())
    assert "core-hours are used (search.budget.gpu_hours)" in said
    assert "The sweep ended early" in said
    storage = f"sqlite:///{home / 'study.db'}"
    before = [trial.state.name for trial in optuna.load_study(study_name="tiny", storage=storage).trials]
    assert before[0] == "COMPLETE"
    assert "RUNNING" not in before
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    parents = [
        run
        for run in client.search_runs([e.experiment_id for e in client.search_experiments()])
        if "mlflow.parentRunId" not in run.data.tags
    ]
    assert [run.info.status for run in parents] == ["FINISHED"]
    assert "ended early" in parents[0].data.tags["sweeper.verdict"]
    reader = sweeper.find("tiny", home=home).reader()
    waiting = [trial for trial in reader.trials("tiny") if trial.state is TrialState.WAITING]
    assert [trial.number for trial in waiting] == [before.index("WAITING")]
    assert waiting[0].value is None
    assert 0 < waiting[0].examples < waiting[0].budget
    assert (home / str(waiting[0].checkpoint)).is_dir()
    assert reader.sweep("tiny").status == "finished"

    again = Watcher()
    shown = sweeper.run(spec, home=home, listener=again)
    assert again.starts == []
    assert shown.drained
    assert shown.best is not None

    spec["search"]["budget"] = {"gpu_hours": 1.0}
    more = Watcher()
    whole = sweeper.run(spec, home=home, listener=more)
    assert more.starts[0] == (waiting[0].number, waiting[0].checkpoint)
    assert {trial.state for trial in whole.trials} == {TrialState.COMPLETE}
    assert len(whole.trials) == 4
    assert whole.drained == ""
    assert "ended early" not in whole.verdict()
    stays = next(trial for trial in whole.trials if trial.number == waiting[0].number)
    assert stays.tokens == whole.trials[0].tokens  # each stay counts its own


def test_where_nothing_has_completed_the_exit_code_is_3_and_a_sentence_says_why(make_spec, tmp_path: Path) -> None:
    spec = make_spec(training={**LONG, "epochs": 400}, search={"trials": 1, "budget": {"gpu_hours": 2 / 3600}}, tracking=[])
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(spec))
    ran = sweeper_command("run", file, "--home", tmp_path)
    assert ran.code == 3
    said = " ".join(ran.out.split())
    assert "No trial has completed." in said
    assert "core-hours are used (search.budget.gpu_hours); 1 trial waits" in said
    assert sweeper_command("run", file, "--home", tmp_path).code == 3


def test_a_budget_of_time_counts_all_of_a_driver_s_seconds(make_spec, tmp_path: Path) -> None:
    spec = make_spec(training={**LONG, "epochs": 4000}, search={"trials": 1, "budget": {"time": 1}}, tracking=[])
    result = sweeper.run(spec, home=tmp_path)
    assert "1 s of driver time are used (search.budget.time)" in str(result.drained)
    assert not any(trial.state is TrialState.RUNNING for trial in result.trials)


def test_running_trials_are_saved_within_a_message_interval(make_spec, tmp_path: Path) -> None:
    spec = make_spec(training={**LONG, "epochs": 400}, search={"trials": 3, "budget": {"gpu_hours": 3 / 3600}}, tracking=[])
    spec["executor"] = {"kind": "local", "slots": 3}
    watcher = Watcher()
    sweeper.run(spec, home=tmp_path, listener=watcher)
    said = [at for at, text in watcher.notices if "search.budget.gpu_hours" in text]
    assert len(said) == 1
    assert [state for _, _, state in watcher.ends] == [TrialState.WAITING] * 3
    assert watcher.ends[-1][0] - said[0] < 5.0


def test_engines_that_share_a_model_drain_as_well(make_spec, tmp_path: Path) -> None:
    budget = {"gpu_hours": 2 / 3600}
    spec = make_spec(training={**LONG, "epochs": 400}, search={"trials": 8, "budget": budget}, tracking=[])
    spec["executor"] = {"kind": "packed", "workers": 2, "slots": 2}
    result = sweeper.run(spec, home=tmp_path)
    assert "search.budget.gpu_hours" in result.drained
    assert {trial.state for trial in result.trials} == {TrialState.WAITING}
    trained = [trial for trial in result.trials if trial.examples]
    assert trained
    assert all(trial.checkpoint and (tmp_path / trial.checkpoint).is_dir() for trial in trained)
    assert "trials wait with what was trained" in result.verdict()


def test_money_is_device_hours_times_the_price(make_spec, tmp_path: Path) -> None:
    budget = {"money": 0.001, "price": 3600 * 0.001 / 0.5}  # half a second of a core
    spec = make_spec(training={**LONG, "epochs": 400}, search={"trials": 2, "budget": budget}, tracking=[])
    spec["executor"] = {"kind": "local", "slots": 1}
    result = sweeper.run(spec, home=tmp_path)
    assert "of 0.001 are spent at 7.2 a core-hour (search.budget.money)" in result.drained
    assert 0.5 <= result.trials[0].seconds < 5


def test_money_without_a_price_is_one_sentence(make_spec) -> None:
    with pytest.raises(SpecError) as caught:
        sweeper.load_spec(make_spec(search={"budget": {"money": 5}}))
    assert [problem.path for problem in caught.value.problems] == ["search.budget.price"]
    assert "no price came" in str(caught.value)


def test_a_budget_is_enough_to_end_a_search(make_spec) -> None:
    spec = sweeper.load_spec(make_spec(search={"trials": None, "budget": {"time": "2h"}}))
    assert spec.search.budget.time == 7200


@pytest.mark.parametrize("given", [{"time": "soon"}, {"time": 0}, {"gpu_hours": 0}, {"money": -1, "price": 1}, {"hours": 2}])
def test_a_budget_that_is_none_is_refused(make_spec, given: dict) -> None:
    with pytest.raises(SpecError, match=r"search\.budget"):
        sweeper.load_spec(make_spec(search={"budget": given}))
