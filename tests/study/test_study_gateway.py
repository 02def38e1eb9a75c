"""The gateway from outside: order of trials, states, idempotence, limits, restarts in one process."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from sweeper.errors import BusyError, ResourceError, StudyError
from sweeper.records import Action, Done, Ending, Outcome, ReportKind, TrialState, Wait
from sweeper.study.gateway import Gateway
from sweeper.study.read import StudyReader
from tests.study.study_helpers import completed, make_plan, next_trial, optuna_trials, quality, report, train


def test_a_study_runs_to_its_end_and_both_databases_agree(database: str) -> None:
    plan = make_plan(search={"trials": 7})
    gateway = Gateway.open(database, plan, driver="test")
    while not isinstance(trial := gateway.next(), Done):
        assert not isinstance(trial, Wait)
        train(gateway, trial, lambda nominal, trial=trial: quality(trial.params) * nominal / 100)
    assert gateway.finished()
    gateway.close()

    told = optuna_trials(database)
    views = StudyReader(database).trials("study")
    assert [str(view.state) for view in views] == [trial.state.name for trial in told]
    assert {"COMPLETE", "PRUNED"} == {trial.state.name for trial in told}
    for view, trial in zip(views, told, strict=True):
        assert view.params.items() >= trial.params.items()
        assert trial.intermediate_values
        if view.state is TrialState.COMPLETE:
            assert view.value == trial.value == trial.intermediate_values[100]
        else:
            assert list(trial.intermediate_values) == [10]
            assert view.reason
            assert trial.user_attrs["reason"] == view.reason
    best = StudyReader(database).best("study")
    assert best is not None
    assert best.value == max(trial.value for trial in told if trial.state.name == "COMPLETE")
    assert StudyReader(database).sweep("study").status == "finished"


def test_trial_0_is_the_default_then_come_the_enqueued_ones(sqlite: str) -> None:
    enqueue = [{"learning_rate": 1e-3, "batch_size": 4}, {"rank": 32}]
    gateway = Gateway.open(sqlite, make_plan(search={"enqueue": enqueue, "trials": 4}), driver="test")
    first, second, third, fourth = (next_trial(gateway) for _ in range(4))
    assert first.params["learning_rate"] == 2e-4
    assert first.params["batch_size"] == 8
    assert (second.params["learning_rate"], second.params["batch_size"], second.params["dropout"]) == (1e-3, 4, 0.0)
    assert third.params == {**first.params, "rank": 32}
    assert fourth.params["dropout"] > 0
    assert [trial.number for trial in (first, second, third, fourth)] == [0, 1, 2, 3]
    assert len({trial.seed for trial in (first, second, third, fourth)}) == 4
    gateway.close()


def test_configurations_enqueued_for_a_later_run_come_next(sqlite: str) -> None:
    gateway = Gateway.open(sqlite, make_plan(search={"trials": 3}), driver="test")
    for _ in range(3):
        gateway.end(next_trial(gateway).number, completed(0.5))
    gateway.close()
    gateway = Gateway.open(sqlite, make_plan(search={"trials": 5, "enqueue": [{"rank": 2}]}), driver="test")
    assert not gateway.finished()
    assert next_trial(gateway).params["rank"] == 2
    assert next_trial(gateway).params["rank"] == 8
    gateway.close()


def test_a_default_outside_the_space_is_trained_but_not_told_to_optuna(sqlite: str) -> None:
    space = {"learning_rate": {"low": 1e-3, "high": 1e-2}, "batch_size": {"low": 2, "high": 16}}
    gateway = Gateway.open(sqlite, make_plan(space=space), driver="test")
    trial = next_trial(gateway)
    assert trial.params["learning_rate"] == 2e-4
    gateway.close()
    frozen = optuna_trials(sqlite)[0]
    assert frozen.params == {"batch_size": 8}
    assert frozen.user_attrs["sweeper"]["params"]["learning_rate"] == 2e-4


def test_the_default_configuration_is_never_pruned(sqlite: str) -> None:
    gateway = Gateway.open(sqlite, make_plan(search={"trials": 5}), driver="test")
    trials = [next_trial(gateway) for _ in range(5)]
    for trial in trials[1:]:
        gateway.report(report(trial, 10, 0.9))
    decision = gateway.report(report(trials[0], 10, 0.1))
    assert decision.action is Action.CONTINUE
    assert "never pruned" in decision.reason
    assert decision.evidence["rank"] == 5
    gateway.close()


def test_clocks_of_a_smaller_budget(sqlite: str) -> None:
    space = {"epochs": [0.05, 0.25, 2.0]}
    plan = make_plan(space=space, search={"sampler": "grid", "rungs": [0.1, 0.3], "trials": 4})
    gateway = Gateway.open(sqlite, plan, driver="test")
    by_budget = {trial.examples: trial for trial in (next_trial(gateway) for _ in range(4))}
    assert set(by_budget) == {5, 25, 100, 200}
    assert (by_budget[200].evaluations, by_budget[200].rungs) == (tuple(range(20, 201, 20)), (20, 60))
    assert (by_budget[100].evaluations, by_budget[100].rungs) == ((20, 40, 60, 80, 100), (20, 60))
    assert (by_budget[25].evaluations, by_budget[25].rungs) == ((20, 25), (20,))
    assert (by_budget[5].evaluations, by_budget[5].rungs) == ((5,), ())
    gateway.close()


def test_wait_while_a_running_trial_may_come_back(sqlite: str) -> None:
    gateway = Gateway.open(sqlite, make_plan(search={"trials": 2}), driver="test")
    first, second = next_trial(gateway), next_trial(gateway)
    assert isinstance(gateway.next(), Wait)
    assert gateway.end(first.number, Outcome(Ending.PREEMPTED, checkpoint="c/1")) is TrialState.WAITING
    again = next_trial(gateway)
    assert (again.number, again.params, again.seed, again.attempt, again.resume_from) == (0, first.params, first.seed, 1, "c/1")
    gateway.end(0, completed(0.5))
    gateway.end(second.number, completed(0.6))
    done = gateway.next()
    assert isinstance(done, Done)
    assert "search.trials" in done.reason
    gateway.close()


def test_ending_twice_changes_nothing(two_databases: str) -> None:
    gateway = Gateway.open(two_databases, make_plan(), driver="test")
    trial = next_trial(gateway)
    assert gateway.end(0, completed(0.5, adapter="adapters/0")) is TrialState.COMPLETE
    events = len(gateway.ledger.pending("t"))
    assert gateway.end(0, Outcome(Ending.FAILED, "late news")) is TrialState.COMPLETE
    assert gateway.report(report(trial, 10, 0.1)).action is Action.STOP
    assert len(gateway.ledger.pending("t")) == events
    gateway.close()
    view = StudyReader(two_databases).trial("study", 0)
    assert (view.state, view.value, view.adapter) == (TrialState.COMPLETE, 0.5, "adapters/0")
    with pytest.raises(StudyError, match="no trial 7"):
        StudyReader(two_databases).trial("study", 7)


def test_the_same_report_twice_gets_the_same_decision_and_is_stored_once(two_databases: str) -> None:
    gateway = Gateway.open(two_databases, make_plan(search={"trials": 4}), driver="test")
    trials = [next_trial(gateway) for _ in range(4)]
    for trial, value in zip(trials, (0.9, 0.8, 0.7), strict=False):
        gateway.report(report(trial, 10, value))
    first = gateway.report(report(trials[3], 10, 0.2))
    assert first.action is Action.STOP
    assert gateway.report(report(trials[3], 10, 0.99)) == first
    assert len([event for event in gateway.ledger.pending("t") if event.kind == "report" and event.trial == 3]) == 1
    gateway.close()
    assert [view.metrics["validation/accuracy"] for view in StudyReader(two_databases).reports("study", 3)] == [0.2]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_fails_the_trial_and_not_the_sweep(database: str, value: float) -> None:
    gateway = Gateway.open(database, make_plan(), driver="test")
    first, second = next_trial(gateway), next_trial(gateway)
    decision = gateway.report(report(first, 10, value))
    assert decision.action is Action.STOP
    assert gateway.end(0, Outcome(Ending.PRUNED)) is TrialState.FAIL
    assert gateway.end(1, completed(value)) is TrialState.FAIL
    assert next_trial(gateway).number == 2
    gateway.close()
    frozen = optuna_trials(database)
    assert [trial.state.name for trial in frozen[:2]] == ["FAIL", "FAIL"]
    assert str(frozen[0].intermediate_values[10]) == str(value)
    views = StudyReader(database).trials("study")
    assert f"validation/accuracy is {value} at 10 examples" in views[0].reason
    assert "at the end" in views[1].reason
    assert second.number == 1


def test_an_ending_without_the_objective_is_a_failure(sqlite: str) -> None:
    gateway = Gateway.open(sqlite, make_plan(), driver="test")
    trial = next_trial(gateway)
    assert gateway.report(report(trial, 10, None)).action is Action.CONTINUE
    assert gateway.end(0, Outcome(Ending.COMPLETED, metrics={"validation/loss": 0.1})) is TrialState.FAIL
    gateway.close()
    assert StudyReader(sqlite).trial("study", 0).reason == "validation/accuracy was not measured at the end"


def test_progress_moves_the_trial_on_but_asks_for_nothing(sqlite: str) -> None:
    gateway = Gateway.open(sqlite, make_plan(), driver="test")
    trial = next_trial(gateway)
    more = {"kind": ReportKind.PROGRESS, "metrics": {"train/loss": 0.7}, "checkpoint": "c/7"}
    progress = report(trial, 7, None)
    gateway.report(type(progress)(**{**progress.__dict__, **more}))
    gateway.report(type(progress)(**{**progress.__dict__, **more}))
    view = StudyReader(sqlite).trial("study", 0)
    assert (view.examples, view.nominal, view.checkpoint) == (10, 0, "c/7")
    assert [event.payload["metrics"] for event in gateway.ledger.pending("t") if event.kind == "report"] == [{"train/loss": 0.7}]
    assert gateway.interrupt() == [0]
    assert next_trial(gateway).resume_from == "c/7"
    gateway.close()


def test_interrupt_leaves_nothing_running_and_the_same_trials_go_on(database: str) -> None:
    plan = make_plan(search={"trials": 4})
    gateway = Gateway.open(database, plan, driver="one")
    trials = [next_trial(gateway) for _ in range(3)]
    train(gateway, trials[0], lambda nominal: 0.5)
    gateway.report(report(trials[1], 10, 0.6, checkpoint="c/10"))
    assert gateway.interrupt() == [1, 2]
    gateway.close()
    assert [trial.state.name for trial in optuna_trials(database)] == ["COMPLETE", "WAITING", "WAITING"]
    assert StudyReader(database).sweep("study").status == "interrupted"

    gateway = Gateway.open(database, plan, driver="two")
    assert gateway.lost == ()
    again = [next_trial(gateway) for _ in range(3)]
    assert [(trial.number, trial.attempt, trial.resume_from) for trial in again] == [(1, 1, "c/10"), (2, 1, None), (3, 0, None)]
    assert again[0].params == trials[1].params
    train(gateway, again[0], lambda nominal: 0.7)
    gateway.close()
    view = StudyReader(database).trial("study", 1)
    assert (view.attempts, view.value) == (2, 0.7)
    reports = StudyReader(database).reports("study", 1)
    redone = [(row.attempt, row.metrics["validation/accuracy"]) for row in reports if row.nominal == 10]
    assert redone == [(0, 0.6), (1, 0.7)]
    assert optuna_trials(database)[1].intermediate_values[10] == 0.6


def test_a_paused_trial_stays_until_it_is_continued(sqlite: str) -> None:
    gateway = Gateway.open(sqlite, make_plan(search={"trials": 2}), driver="test")
    next_trial(gateway)
    assert gateway.end(0, Outcome(Ending.PAUSED, checkpoint="c")) is TrialState.PAUSED
    assert next_trial(gateway).number == 1
    gateway.end(1, completed(0.5))
    assert isinstance(gateway.next(), Done)
    assert not gateway.finished()
    gateway.close()
    assert optuna_trials(sqlite)[0].state.name == "WAITING"


def test_time_is_counted_over_runs_and_starts_nothing_new(sqlite: str) -> None:
    gateway = Gateway.open(sqlite, make_plan(search={"time": 3600, "trials": None}), driver="test")
    next_trial(gateway)
    gateway.end(0, completed(0.5))
    spent = gateway.seconds()
    gateway.close()
    gateway = Gateway.open(sqlite, make_plan(search={"time": spent / 2, "trials": None}), driver="test")
    done = gateway.next()
    assert isinstance(done, Done)
    assert "search.time" in done.reason
    assert gateway.finished()
    gateway.close()


def test_more_trials_may_be_asked_for_later_and_the_change_is_a_row(sqlite: str) -> None:
    gateway = Gateway.open(sqlite, make_plan(search={"trials": 1}), driver="test")
    next_trial(gateway)
    gateway.end(0, completed(0.5))
    gateway.close()
    gateway = Gateway.open(sqlite, make_plan(search={"trials": 2}), driver="test")
    assert next_trial(gateway).number == 1
    with gateway.ledger.begin() as connection:
        assert connection.exec_driver_sql("SELECT field, old, new FROM swp_changes").all() == [("search.trials", "1", "2")]
    gateway.close()
    assert StudyReader(sqlite).plan("study").search.trials == 2


def test_another_identity_is_refused_with_what_differs(sqlite: str) -> None:
    class Identity:
        def __init__(self, name: str, rank: int) -> None:
            self.hash, self.parts = name, {"model": "m", "training": {"rank": rank, "clip": 1.0}}

    Gateway.open(sqlite, make_plan(identity=Identity("a", 8)), driver="test").close()
    with pytest.raises(StudyError, match=r"training\.rank was 8 and is 4") as caught:
        Gateway.open(sqlite, make_plan(identity=Identity("b", 4)), driver="test")
    assert "clip" not in str(caught.value)
    assert "another name" in str(caught.value)


def test_a_study_that_optuna_made_is_left_alone(sqlite: str) -> None:
    study = optuna.create_study(study_name="study", storage=sqlite)
    study.tell(study.ask(), 1.0)
    with pytest.raises(StudyError, match="did not make"):
        Gateway.open(sqlite, make_plan(), driver="test")


def test_a_trial_ended_by_hand_in_optuna_is_neither_trained_again_nor_in_the_way(sqlite: str) -> None:
    plan = make_plan(search={"trials": 3})
    gateway = Gateway.open(sqlite, plan, driver="test")
    trial = next_trial(gateway)
    optuna.load_study(study_name="study", storage=sqlite).tell(0, state=optuna.trial.TrialState.FAIL)
    assert gateway.report(report(trial, 10, 0.5)).action is Action.CONTINUE
    gateway.close()
    gateway = Gateway.open(sqlite, plan, driver="test")
    assert gateway.lost == ()
    assert next_trial(gateway).number == 1
    gateway.close()
    view = StudyReader(sqlite).trial("study", 0)
    assert (view.state, view.reason) == (TrialState.FAIL, "ended outside Sweeper as FAIL")


def test_two_drivers_of_one_study_but_not_of_two(sqlite: str) -> None:
    one = Gateway.open(sqlite, make_plan(), driver="one")
    with pytest.raises(BusyError, match="is being run by process"):
        Gateway.open(sqlite, make_plan(), driver="two")
    other = Gateway.open(sqlite, make_plan(name="other"), driver="two")
    assert next_trial(other).number == 0
    assert next_trial(one).number == 0
    one.close()
    other.close()
    assert sorted(StudyReader(sqlite).studies()) == ["other", "study"]


def test_several_objectives_are_told_at_the_end_and_make_a_front(two_databases: str) -> None:
    plan = make_plan(objective={"metric": ["accuracy", "loss"]}, search={"trials": 4, "pruner": "none"})
    assert plan.directions == ("maximize", "minimize")
    gateway = Gateway.open(two_databases, plan, driver="test")
    for accuracy, loss in [(0.5, 0.5), (0.6, 0.7), (0.7, 0.4), (0.9, 0.9)]:
        trial = next_trial(gateway)
        gateway.report(report(trial, 10, accuracy))
        gateway.end(trial.number, Outcome(Ending.COMPLETED, metrics={"validation/accuracy": accuracy, "validation/loss": loss}))
    gateway.close()
    assert [view.number for view in StudyReader(two_databases).best_front("study")] == [2, 3]
    assert optuna_trials(two_databases)[1].values == [0.6, 0.7]


def test_a_constraint_that_is_not_met_keeps_a_trial_from_winning(sqlite: str) -> None:
    objective = {"metric": "accuracy", "constraints": {"loss": {"max": 0.5}}}
    gateway = Gateway.open(sqlite, make_plan(objective=objective, search={"trials": 2}), driver="test")
    for accuracy, loss in [(0.6, 0.4), (0.9, 0.8)]:
        trial = next_trial(gateway)
        gateway.end(trial.number, Outcome(Ending.COMPLETED, metrics={"validation/accuracy": accuracy, "validation/loss": loss}))
    gateway.close()
    reader = StudyReader(sqlite)
    assert [view.feasible for view in reader.trials("study")] == [True, False]
    assert reader.best("study").number == 0
    study = optuna.load_study(study_name="study", storage=sqlite)
    assert study.trials[1].constraints == pytest.approx({"loss:max": 0.3})
    assert study.best_trial.number == 0


def test_a_start_a_report_and_an_end_are_one_transaction_each(sqlite: str) -> None:
    gateway = Gateway.open(sqlite, make_plan(), driver="test")
    committed: list[str] = []

    def commit(connection: sa.Connection) -> None:
        committed.append(str(connection.engine.url))

    sa.event.listen(sa.engine.Engine, "commit", commit)
    trial = next_trial(gateway)
    gateway.report(report(trial, 10, 0.5, checkpoint="c/10"))
    gateway.end(trial.number, completed(0.5))
    sa.event.remove(sa.engine.Engine, "commit", commit)
    assert committed.count(sqlite) == 3
    gateway.close()


def test_a_report_that_could_not_be_committed_is_as_if_it_had_not_come(sqlite: str) -> None:
    gateway = Gateway.open(sqlite, make_plan(), driver="test")
    trial = next_trial(gateway)

    def fail(connection: sa.Connection) -> None:
        raise sa.exc.OperationalError("COMMIT", None, Exception("the disk is gone"))

    sa.event.listen(gateway.ledger._engine, "commit", fail)
    with pytest.raises(ResourceError, match="the disk is gone"):
        gateway.report(report(trial, 10, 0.5))
    sa.event.remove(gateway.ledger._engine, "commit", fail)
    assert optuna_trials(sqlite)[0].intermediate_values == {}
    assert gateway.report(report(trial, 10, 0.6)).evidence["value"] == 0.6
    assert optuna_trials(sqlite)[0].intermediate_values == {10: 0.6}
    gateway.close()


def test_what_is_told_together_is_one_transaction_and_seen_by_what_comes_later_in_it(two_databases: str) -> None:
    gateway = Gateway.open(two_databases, make_plan(search={"trials": 6}), driver="test")
    committed: list[str] = []

    def commit(connection: sa.Connection) -> None:
        committed.append(str(connection.engine.url))

    sa.event.listen(gateway.ledger._engine, "commit", commit)
    with gateway.together():
        trials = [next_trial(gateway) for _ in range(5)]
    assert len(committed) == 1
    with gateway.together():
        decisions = [gateway.report(report(trial, 10, 0.9 - trial.number / 10, checkpoint="c/10")) for trial in trials]
        again = gateway.report(report(trials[3], 10, 0.1))
        gateway.report(report(trials[0], 20, 0.95))
        states = [gateway.end(0, completed(0.96)), gateway.end(4, Outcome(Ending.PRUNED, nominal=10))]
    # The report that came twice is answered from the database, so that what came before it is committed first.
    assert len(committed) == 4
    sa.event.remove(gateway.ledger._engine, "commit", commit)
    assert [decision.action for decision in decisions] == [Action.CONTINUE] * 2 + [Action.STOP] * 3
    assert again == decisions[3]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED]
    kinds = [(event.kind, event.trial) for event in gateway.ledger.pending("t")]
    assert kinds[:5] == [("trial_started", number) for number in range(5)]
    assert kinds[-3:] == [("report", 0), ("trial_ended", 0), ("trial_ended", 4)]
    gateway.close()
    assert [trial.state.name for trial in optuna_trials(two_databases)] == ["COMPLETE", "RUNNING", "RUNNING", "RUNNING", "PRUNED"]
    assert optuna_trials(two_databases)[0].intermediate_values == {10: 0.9, 20: 0.95}
    views = StudyReader(two_databases).trials("study")
    assert (views[0].value, views[4].reason) == (0.96, decisions[4].reason)


@pytest.mark.parametrize("how", ["commit", "source"])
def test_what_could_not_be_kept_together_is_as_if_it_had_not_been_told(sqlite: str, how: str) -> None:
    gateway = Gateway.open(sqlite, make_plan(search={"trials": 6, "startup_trials": 1}), driver="test")
    first, second = next_trial(gateway), next_trial(gateway)
    gateway.report(report(second, 10, 0.4))

    def fail(connection: sa.Connection) -> None:
        raise sa.exc.OperationalError("COMMIT", None, Exception("the disk is gone"))

    def told() -> list[object]:
        return [
            gateway.report(report(first, 10, 0.5)).evidence.get("compared"),
            gateway.report(report(second, 20, float("nan"))).action,
            gateway.end(1, Outcome(Ending.FAILED, "the loss exploded", nominal=20)),
            gateway.end(0, completed(0.5)),
        ]

    def asked() -> list[object]:
        return [next_trial(gateway) for _ in range(3)]

    def lose(call: Callable[[], list[object]]) -> list[object]:
        with gateway.together():
            answers.extend(call())
            if how == "source":
                raise ResourceError("the disk is gone")
        raise AssertionError("it was kept")

    before = gateway.states(), gateway.ledger.pending("t"), optuna_trials(sqlite)
    answers: list[object] = []
    if how == "commit":
        sa.event.listen(gateway.ledger._engine, "commit", fail)
    for call in (told, asked):
        with pytest.raises(ResourceError, match="the disk is gone"):
            lose(call)
    if how == "commit":
        sa.event.remove(gateway.ledger._engine, "commit", fail)
    assert (gateway.states(), gateway.ledger.pending("t"), optuna_trials(sqlite)) == before
    with gateway.together():
        assert asked() == answers[4:]
    with gateway.together():
        assert told() == answers[:4]
    assert gateway.states()[0] is TrialState.COMPLETE
    gateway.close()
    assert [trial.state.name for trial in optuna_trials(sqlite)[:2]] == ["COMPLETE", "FAIL"]
    assert [row.finish_order for row in gateway._writes.trials.values()][:2] == [1, 0]


def test_a_trial_asked_for_together_with_an_end_is_drawn_with_it_known(sqlite: str, tmp_path: Path) -> None:
    def drawn(url: str, together: Callable[[Gateway], AbstractContextManager[None]]) -> object:
        gateway = Gateway.open(url, make_plan(search={"trials": 9, "startup_trials": 2}), driver="test")
        for number in range(4):
            gateway.end(next_trial(gateway).number, completed(0.2 * number))
        last = next_trial(gateway)
        with together(gateway):
            gateway.end(last.number, completed(0.9))
            params = next_trial(gateway).params
        gateway.close()
        return params

    apart = drawn(f"sqlite:///{tmp_path / 'apart.db'}", lambda _: nullcontext())
    assert drawn(sqlite, Gateway.together) == apart
