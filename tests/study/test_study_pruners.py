"""Pruners decide as Optuna's own do, on the same values; what Optuna has no word for is tested by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState as OptunaState

from sweeper.records import TrialState
from sweeper.study.collapse import has_collapsed, judge_collapse
from sweeper.study.plan import StudyPlan
from sweeper.study.pruners import Curve, bracket, judge
from tests.study.study_helpers import make_plan

NAN = math.nan


def _plan(pruner: str, direction: str = "maximize", **search: Any) -> StudyPlan:
    objective = {"metric": "accuracy" if direction == "maximize" else "loss", "direction": direction}
    return make_plan(objective=objective, search={"pruner": pruner, **search}, train_rows=90, evaluate={"every": 10})


def _curve(number: int, *values: float, state: TrialState = TrialState.RUNNING) -> Curve:
    return Curve(number, state, {10 * (i + 1): value for i, value in enumerate(values)})


def _same_decisions(
    plan: StudyPlan, pruner: optuna.pruners.BasePruner, judged: Callable[[int], bool], seed: int
) -> tuple[int, int]:
    """Trains 40 random trials one after the other under both; returns how many were stopped and kept."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction=plan.directions[0], pruner=pruner, study_name=plan.name)
    rng = random.Random(seed)
    curves: list[Curve] = []
    stopped = 0
    for number in range(40):
        trial, level, values = study.ask(), rng.random(), {}
        state = TrialState.COMPLETE
        for step in range(10, 91, 10):
            values[step] = NAN if rng.random() < 0.01 else level + rng.gauss(0, 0.2) + step / 200
            trial.report(values[step], step)
            ours = judge(plan, Curve(number, TrialState.RUNNING, values), step, curves, at_rung=step in plan.rungs)
            theirs = trial.should_prune() if judged(step) else False
            assert ours.stop == theirs, (number, step, ours)
            assert ours.pruner == plan.search.pruner
            if ours.stop:
                state, stopped = TrialState.PRUNED, stopped + 1
                assert ours.reason
                break
        curves.append(Curve(number, state, values))
        if state is TrialState.PRUNED:
            study.tell(trial, state=OptunaState.PRUNED)
        else:
            study.tell(trial, 1.0)
    return stopped, 40 - stopped


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning", "ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("name", "search", "theirs", "at_rungs"),
    [
        ("halving", {"rungs": [1 / 9, 1 / 3], "min_trials": 1}, lambda: optuna.pruners.SuccessiveHalvingPruner(10, 3), True),
        ("asha", {"rungs": [1 / 9, 1 / 3], "min_trials": 1}, lambda: optuna.pruners.SuccessiveHalvingPruner(10, 3), True),
        ("hyperband", {"rungs": [1 / 9, 1 / 3], "min_trials": 1}, lambda: optuna.pruners.HyperbandPruner(10, 90, 3), True),
        ("median", {"rungs": [1 / 9, 2 / 3]}, lambda: optuna.pruners.MedianPruner(3, n_min_trials=3), True),
        ("percentile", {"rungs": [1 / 9, 2 / 3]}, lambda: optuna.pruners.PercentilePruner(25.0, 3, n_min_trials=3), True),
        ("patience", {"patience": 2, "min_delta": 0.05}, lambda: optuna.pruners.PatientPruner(None, 2, 0.05), False),
        ("threshold", {"lower": 0.0, "upper": 1.1}, lambda: optuna.pruners.ThresholdPruner(0.0, 1.1), False),
        ("none", {}, lambda: optuna.pruners.NopPruner(), True),
    ],
)
def test_decides_as_optuna_does(
    name: str, search: dict[str, Any], theirs: Callable[[], optuna.pruners.BasePruner], at_rungs: bool, direction: str, seed: int
) -> None:
    plan = _plan(name, direction, **search)
    stopped, kept = _same_decisions(plan, theirs(), lambda step: not at_rungs or step in plan.rungs, seed)
    assert kept > 0
    assert (stopped > 0) == (name != "none")


def test_halving_waits_for_three_and_keeps_the_best_third_of_those_so_far() -> None:
    plan = _plan("halving", rungs=[1 / 9])
    others = [_curve(0, 0.5)]
    early = judge(plan, _curve(1, 0.1), 10, others, at_rung=True)
    assert (early.stop, early.rank, early.cutoff) == (False, 2, None)
    others.append(_curve(1, 0.1))
    third = judge(plan, _curve(2, 0.4), 10, others, at_rung=True)
    assert (third.stop, third.rank, third.cutoff, third.compared) == (True, 2, 0.5, (0, 1))
    assert not judge(plan, _curve(2, 0.6), 10, others, at_rung=True).stop
    assert not judge(plan, _curve(2, 0.5), 10, others, at_rung=True).stop
    six = [_curve(n, value) for n, value in enumerate([0.1, 0.2, 0.3, 0.4, 0.9])]
    assert not judge(plan, _curve(5, 0.8), 10, six, at_rung=True).stop
    assert judge(plan, _curve(5, 0.35), 10, six, at_rung=True).rank == 3


def test_a_trial_is_compared_only_where_others_have_been() -> None:
    plan = _plan("halving", rungs=[1 / 9, 1 / 3])
    others = [_curve(n, 0.9) for n in range(5)]
    assert not judge(plan, _curve(7, 0.1, 0.1, 0.1), 30, others, at_rung=True).stop


def test_evidence_is_complete() -> None:
    plan = _plan("halving", rungs=[1 / 9])
    judgement = judge(plan, _curve(9, 0.1), 10, [_curve(n, 0.5) for n in range(4)], at_rung=True)
    assert judgement.evidence() == {
        "pruner": "halving",
        "value": 0.1,
        "rung": 10,
        "cutoff": 0.5,
        "rank": 5,
        "compared": [0, 1, 2, 3],
    }


def test_brackets_share_trials_as_hyperband_does() -> None:
    plan = _plan("hyperband", rungs=[1 / 9, 1 / 3])
    counts = [sum(bracket(plan, number) == b for number in range(3000)) for b in range(3)]
    # Allocations 9, 5 and 3 of 17.
    assert counts == pytest.approx([3000 * share / 17 for share in (9, 5, 3)], rel=0.1)


@pytest.mark.parametrize(
    ("values", "collapsed"),
    [
        ([0.5, 0.5, 0.5], False),  # never rose
        ([0.7, 0.5], False),  # once is not enough
        ([0.7, 0.5, 0.51], True),
        ([0.7, 0.5, 0.6], False),
        ([0.7, 0.5, 0.6, 0.4, 0.3], True),
        ([0.51, 0.5, 0.5], False),  # within the margin of chance
    ],
)
def test_collapse(values: list[float], collapsed: bool) -> None:
    assert has_collapsed(values, 0.5, 0.02, 2, maximize=True) is collapsed
    assert has_collapsed([1 - value for value in values], 0.5, 0.02, 2, maximize=False) is collapsed


def test_collapse_needs_a_known_chance_and_may_be_switched_off() -> None:
    curve = _curve(1, 0.9, 0.5, 0.5)
    assert judge_collapse(make_plan(), curve, 30) is None
    assert judge_collapse(make_plan(chance=0.5, search={"collapse": {"enabled": False}}), curve, 30) is None
    judgement = judge_collapse(make_plan(chance=0.5), curve, 30)
    assert judgement is not None
    assert judgement.stop
    assert "chance" in judgement.reason
