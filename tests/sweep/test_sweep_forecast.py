"""The forecast's arithmetic on made-up machines, in milliseconds: where the truth is known, it says the truth."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from sweeper.records import TrialState
from sweeper.spec.load import load_spec
from sweeper.study.budget import Device
from sweeper.study.plan import StudyPlan, plan_study
from sweeper.sweep.forecast.forecast import Range, forecast
from sweeper.sweep.forecast.outlook import Begun, Configurations, History, judged_of
from sweeper.sweep.forecast.simulate import World, simulate
from sweeper.sweep.forecast.speed import Passes, Speed

ROWS = 80
BASE = {
    "schema": 1,
    "name": "made-up",
    "model": "none",
    "data": {"path": "none.csv", "task": "classify"},
    "training": {"batch_size": 8},
}


def made_plan(search: dict[str, Any], space: dict[str, Any] | None = None) -> StudyPlan:
    """A plan of 80 training rows, evaluated every 8 examples."""
    dimensions = space if space is not None else {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    spec = load_spec({**BASE, "space": dimensions, "search": {"pruner": "none", **search}})
    return plan_study(spec, identity="i", spec_document={}, train_rows=ROWS, chance=None, data_fingerprint="f", versions={})


def made_speed(**changes: Any) -> Speed:
    """A millisecond a token: a trial of 80 rows of 10 tokens trains 0.8 s; reading is free, nothing is uncertain."""
    speed = Speed(
        passes=Passes([(80, 0.08)]),
        read_seconds=0.0,
        row_tokens=10,
        between_rows=10,
        full_rows=40,
        chunk_tokens=1000,
        micro_tokens=1000,
        spread=0.0,
    )
    return replace(speed, **changes)


def world(search: dict[str, Any], history: History | None = None, space: dict[str, Any] | None = None, **speed: Any) -> World:
    plan = made_plan(search, space)
    history = history or History()
    return World(plan, made_speed(**speed), Configurations(plan, history), history, Device(1, "core"))


@pytest.mark.parametrize(("trials", "engines"), [(6, 1), (6, 2), (6, 3), (7, 2)])
def test_equal_trials_without_pruning_take_as_long_as_they_take(trials: int, engines: int) -> None:
    found = forecast(world({"trials": trials}, engines=engines), runs=20)
    truth = -(-trials // engines) * 0.8
    assert found.seconds == Range(pytest.approx(truth), pytest.approx(truth), pytest.approx(truth))
    assert found.device_hours.mid == pytest.approx(trials * 0.8 / 3600)
    assert found.complete == Range(trials, trials, trials)
    assert found.drained == 0


def test_start_and_turns_and_reading_add_up() -> None:
    found = forecast(world({"trials": 3}, turn_seconds=0.5, read_seconds=0.001), runs=20)
    reading = 8 * 10 * 0.001 + 2 * 40 * 0.001  # all rows at the rung and at the end
    assert found.seconds.mid == pytest.approx(3 * (0.8 + 0.5 + reading))


@pytest.mark.parametrize(("deterministic", "truth"), [(False, 1.2), (True, 1.6)])
def test_an_engine_that_has_run_dry_takes_over_a_trial(deterministic: bool, truth: float) -> None:
    """Two trials in one engine take twice as long as one; the other's is done after half of it."""
    full = Passes([(80, 0.08), (160, 0.16)])
    search = {"trials": 3, "deterministic": deterministic}
    found = forecast(world(search, engines=2, slots=2, passes=full), runs=20)
    assert found.seconds.mid == pytest.approx(truth, abs=0.17)
    assert found.device_hours.mid == pytest.approx(3 * 0.8 / 3600)
    assert found.complete == Range(3, 3, 3)


def test_trials_that_share_a_pass_take_the_time_of_the_pass() -> None:
    flat = Passes([(80, 0.08), (320, 0.08)])  # four trials cost no more than one
    alone = forecast(world({"trials": 8}, passes=flat), runs=20)
    packed = forecast(world({"trials": 8}, passes=flat, slots=4), runs=20)
    assert packed.seconds.mid == pytest.approx(alone.seconds.mid / 4)
    halved = forecast(world({"trials": 8}, passes=flat, slots=4, micro_tokens=160), runs=20)
    assert halved.seconds.mid == pytest.approx(alone.seconds.mid / 2)


@pytest.mark.parametrize(
    ("budget", "hours"),
    [({"gpu_hours": 2.4 / 3600}, 2.4), ({"money": 2.4, "price": 3600}, 2.4), ({"time": 1.2}, 2.4)],
)
def test_a_budget_of_half_cuts_there(budget: dict[str, float], hours: float) -> None:
    found = forecast(world({"trials": 6, "budget": budget}, engines=2), runs=20)
    assert found.device_hours.mid * 3600 == pytest.approx(hours, abs=0.2)
    assert found.seconds.mid == pytest.approx(1.2, abs=0.1)
    assert found.drained == 1
    assert found.complete.mid == 2
    assert found.waiting.mid == 2


def test_no_new_trial_begins_after_search_time() -> None:
    found = forecast(world({"trials": None, "time": 1.0}, engines=1), runs=20)
    assert found.started.mid == 2
    assert found.complete.mid == 2
    assert found.seconds.mid == pytest.approx(1.6)


def test_halving_stops_two_thirds_at_its_rung() -> None:
    found = forecast(world({"trials": 60, "pruner": "halving", "rungs": [0.1]}, engines=2), runs=60)
    assert 0.5 * 60 < found.pruned.mid < 0.72 * 60
    assert found.complete.mid + found.pruned.mid == pytest.approx(60, abs=2)
    assert found.pruned.low < found.pruned.high
    whole = forecast(world({"trials": 60}, engines=2), runs=20)
    assert found.seconds.mid < 0.6 * whole.seconds.mid


@pytest.mark.parametrize("pruner", ["median", "percentile", "asha", "hyperband", "patience", "threshold"])
def test_every_pruner_can_be_simulated(pruner: str) -> None:
    search = {"trials": 12, "pruner": pruner, "rungs": [0.1, 0.3], **({"upper": 3.0} if pruner == "threshold" else {})}
    found = simulate(world(search), random.Random(1))
    assert found.states[TrialState.COMPLETE] >= 1
    assert sum(found.states.values()) == 12


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "gp"])
def test_larger_batches_cost_what_their_passes_cost(sampler: str) -> None:
    dear = Passes([(40, 0.02), (80, 0.08)])  # a small batch is four times cheaper a pass
    space = {"batch_size": [4]}
    found = forecast(world({"trials": 2, "sampler": sampler}, space=space, passes=dear), runs=20)
    assert found.seconds.mid == pytest.approx(0.8 + 20 * 0.02)


def test_a_grid_ends_where_it_ends() -> None:
    space = {"learning_rate": [1e-4, 1e-3], "batch_size": [4, 8]}
    found = forecast(world({"trials": None, "sampler": "grid"}, space=space), runs=20)
    assert found.complete.mid == 5  # the default besides


def test_the_rest_of_a_study_is_forecast_from_its_own_rates() -> None:
    kept = History(started=8, ended=6, judged={8: (0, 40)}, begun=(Begun(6, {"batch_size": 8, "epochs": 1.0}, 40),))
    found = forecast(world({"trials": 12, "pruner": "halving", "rungs": [0.1]}, history=kept), runs=40)
    assert found.pruned.mid == 4  # of numbers 8 to 11; number 6 is past the rung
    assert found.complete.mid == 1
    assert found.seconds.mid == pytest.approx(0.4 + 4 * 0.08)


def test_trials_that_were_at_a_rung_before_are_compared_with() -> None:
    """Four have passed the rung, too few to judge them: those to come are judged all the same, as the pruner will."""
    begun = tuple(Begun(number, {"batch_size": 8, "epochs": 1.0}, 40) for number in range(4))
    search = {"trials": 12, "pruner": "halving", "rungs": [0.1], "min_trials": 4}
    known = forecast(world(search, history=History(started=4, begun=begun, reached={8: 4})), runs=60)
    unknown = forecast(world(search, history=History(started=4, begun=begun)), runs=60)
    assert known.pruned.mid >= 5
    assert known.pruned.mid > unknown.pruned.mid
    assert known.pruned.high <= 8


def test_what_failed_before_may_fail_again() -> None:
    failing = History(started=10, ended=10, failed=5)
    found = forecast(world({"trials": 30}, history=failing), runs=60)
    assert 4 < found.failed.mid < 16


def test_the_interval_is_as_wide_as_the_speed_is_uncertain() -> None:
    found = forecast(world({"trials": 6}, spread=0.12), runs=300)
    assert found.seconds.holds(4.8)
    assert found.seconds.low == pytest.approx(4.8 * 0.857, rel=0.04)  # exp(-1.2816 * 0.12)
    assert found.seconds.high == pytest.approx(4.8 * 1.166, rel=0.04)


def test_a_long_sweep_costs_no_more_to_simulate_than_a_short_one() -> None:
    plan = replace(made_plan({"trials": 4}), train_rows=80_000, full=80_000, evaluate_every=8_000)
    found = forecast(World(plan, made_speed(), Configurations(plan, History())), runs=20)
    assert found.seconds.mid == pytest.approx(4 * 800, rel=0.01)


def test_the_same_seed_gives_the_same_forecast() -> None:
    given = world({"trials": 20, "pruner": "halving"}, spread=0.1)
    assert forecast(given, runs=30) == forecast(given, runs=30)


def test_decisions_are_counted_by_rung() -> None:
    assert judged_of([(8, True), (8, False), (8, True), (16, True)], rungs=[8]) == {8: (1, 2)}


def test_pass_times_lie_on_lines_between_points_and_never_fall() -> None:
    passes = Passes([(100, 0.2), (200, 0.3), (400, 0.25)])
    assert passes.seconds(150) == pytest.approx(0.25)
    assert passes.seconds(300) == pytest.approx(0.3)
    assert passes.seconds(50) == pytest.approx(0.15)
    assert passes.seconds(800) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="at least one"):
        Passes([])
