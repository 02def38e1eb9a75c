"""Samplers: the same trials again after a restart, nothing twice, every kind of space."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial

from sweeper.errors import StudyError
from sweeper.records import Done, TrialSpec
from sweeper.study import samplers
from sweeper.study.gateway import Gateway
from sweeper.study.plan import StudyPlan
from sweeper.study.samplers import Sampling
from sweeper.study.tpe import fits
from tests.study.study_helpers import SPACE, completed, make_plan, next_trial, optuna_trials, quality

GRID: dict[str, Any] = {"batch_size": [4, 8], "dropout": {"low": 0.0, "high": 0.2, "step": 0.1}}
CONDITIONAL: dict[str, Any] = {
    "schedule": ["constant", "cosine"],
    "warmup": {"low": 0.0, "high": 0.2, "when": {"schedule": ["cosine"]}},
    "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
}


def _run(url: str, plan: StudyPlan, reopen: int = 0) -> list[TrialSpec]:
    """Completes trials until Done, opening the study anew after every `reopen` trials."""
    trials: list[TrialSpec] = []
    gateway = Gateway.open(url, plan, driver="test")
    while not isinstance(trial := gateway.next(), Done):
        assert isinstance(trial, TrialSpec)
        trials.append(trial)
        gateway.end(trial.number, completed(quality(trial.params)))
        if reopen and len(trials) % reopen == 0:
            gateway.close()
            gateway = Gateway.open(url, plan, driver="test")
    gateway.close()
    return trials


def _run_by_warmup(url: str, plan: StudyPlan) -> list[TrialSpec]:
    """Completes trials until Done; the more warm-up, the better."""
    trials: list[TrialSpec] = []
    gateway = Gateway.open(url, plan, driver="test")
    while isinstance(trial := gateway.next(), TrialSpec):
        trials.append(trial)
        gateway.end(trial.number, completed(0.5 + float(trial.params["warmup"] or 0)))
    gateway.close()
    return trials


def _values(trials: list[TrialSpec], plan: StudyPlan) -> list[tuple[Any, ...]]:
    return [tuple(trial.params[key] for key in sorted(plan.space)) for trial in trials]


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "qmc", "gp"])
def test_a_restart_changes_no_suggestion(sampler: str, tmp_path: Any) -> None:
    plan = make_plan(search={"sampler": sampler, "trials": 7, "startup_trials": 3, "pruner": "none"})
    once = _run(f"sqlite:///{tmp_path / 'once.db'}", plan)
    often = _run(f"sqlite:///{tmp_path / 'often.db'}", plan, reopen=3)
    assert once == often
    assert len(set(_values(once, plan))) == 7
    other = _run(f"sqlite:///{tmp_path / 'seed.db'}", make_plan(search={**plan.search.model_dump(), "seed": 7}))
    assert set(_values(other[1:], plan)).isdisjoint(_values(once[1:], plan))


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "gp"])
def test_it_learns(sampler: str, sqlite: str) -> None:
    plan = make_plan(
        space={"dropout": {"low": 0.0, "high": 0.9}, "warmup": {"low": 0.0, "high": 0.9}},
        search={"sampler": sampler, "trials": 40, "startup_trials": 6, "pruner": "none"},
    )
    gateway = Gateway.open(sqlite, plan, driver="test")
    distances = []
    for _ in range(40):
        trial = next_trial(gateway)
        distance = abs(float(trial.params["dropout"] or 0) - 0.7) + abs(float(trial.params["warmup"] or 0) - 0.2)
        distances.append(distance)
        gateway.end(trial.number, completed(1 - distance / 2))
    gateway.close()
    assert sum(distances[-10:]) / 10 < 0.6 * sum(distances[1:7]) / 6


def test_running_trials_change_no_suggestion(tmp_path: Any) -> None:
    plan = make_plan(search={"sampler": "tpe", "startup_trials": 2, "trials": 8})
    alone = Gateway.open(f"sqlite:///{tmp_path / 'a.db'}", plan, driver="test")
    for value in (0.5, 0.6, 0.7):
        alone.end(next_trial(alone).number, completed(value))
    fourth = [next_trial(alone) for _ in range(2)]
    alone.close()
    other = Gateway.open(f"sqlite:///{tmp_path / 'b.db'}", plan, driver="test")
    for value in (0.5, 0.6, 0.7):
        other.end(next_trial(other).number, completed(value))
    first = next_trial(other)
    other.end(first.number, completed(0.9))
    second = next_trial(other)
    other.close()
    assert first == fourth[0]
    assert second.params != fourth[1].params


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe", "qmc"])
def test_a_finite_space_is_tried_once_and_then_done(sampler: str, sqlite: str) -> None:
    plan = make_plan(space=GRID, search={"sampler": sampler, "trials": None, "startup_trials": 3, "pruner": "none"})
    trials = _run(sqlite, plan, reopen=4)
    assert sorted(_values(trials, plan)) == sorted(itertools.product([4, 8], [0.0, 0.1, 0.2]))
    gateway = Gateway.open(sqlite, plan, driver="test")
    assert gateway.finished()
    done = gateway.next()
    assert isinstance(done, Done)
    assert "every configuration" in done.reason
    gateway.close()


def test_the_grid_is_not_walked_corner_by_corner(sqlite: str) -> None:
    space = {"batch_size": {"low": 1, "high": 10}, "rank": {"low": 1, "high": 10}}
    plan = make_plan(space=space, search={"sampler": "grid", "trials": 21})
    trials = _run(sqlite, plan)
    assert len({trial.params["batch_size"] for trial in trials[1:]}) >= 6


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "qmc"])
def test_a_condition_decides_what_is_searched(sampler: str, sqlite: str) -> None:
    plan = make_plan(space=CONDITIONAL, search={"sampler": sampler, "trials": 12, "startup_trials": 5, "pruner": "none"})
    trials = _run(sqlite, plan)
    told = optuna_trials(sqlite)
    for trial, frozen in zip(trials[1:], told[1:], strict=True):
        if trial.params["schedule"] == "cosine":
            assert frozen.params["warmup"] == trial.params["warmup"]
        else:
            assert "warmup" not in frozen.params
            assert trial.params["warmup"] == 0.0
    assert {trial.params["schedule"] for trial in trials[1:]} == {"constant", "cosine"}


def test_a_conditional_grid_has_no_doubles(sqlite: str) -> None:
    space = {"schedule": ["constant", "cosine"], "warmup": {"values": [0.1, 0.2], "when": {"schedule": ["cosine"]}}}
    trials = _run(sqlite, make_plan(space=space, search={"sampler": "grid", "trials": None}))
    # The default is linear, which the space has not: it comes first, then three points.
    found = sorted((str(trial.params["schedule"]), trial.params["warmup"]) for trial in trials)
    assert found == [("constant", 0.0), ("cosine", 0.1), ("cosine", 0.2), ("linear", 0.0)]


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc"])
def test_a_space_without_end_is_drawn_again_rather_than_tried_twice(sampler: str, sqlite: str) -> None:
    space = {
        "schedule": ["constant", "cosine"],
        "warmup": {"low": 0.0, "high": 0.2, "when": {"schedule": ["cosine"]}},
        "rank": [2, 4],
    }
    plan = make_plan(space=space, search={"sampler": sampler, "trials": 16, "startup_trials": 5, "pruner": "none"})
    values = _values(_run_by_warmup(sqlite, plan), plan)
    assert len(values) == len(set(values)) == 16


def test_a_space_that_is_all_but_used_up_goes_on(sqlite: str) -> None:
    space = {"rank": [2, 4], "warmup": {"low": 0.0, "high": 0.2, "when": {"rank": [16]}}}
    plan = make_plan(space=space, search={"sampler": "random", "trials": 6, "pruner": "none"})
    assert len(_run_by_warmup(sqlite, plan)) == 6


def test_qmc_spreads_more_evenly_than_chance(sqlite: str) -> None:
    plan = make_plan(space={"dropout": {"low": 0.0, "high": 0.8}}, search={"sampler": "qmc", "trials": 17})
    trials = _run(sqlite, plan)
    eighths = {int(float(trial.params["dropout"] or 0) * 10) for trial in trials[1:9]}
    assert len(eighths) == 8


def test_values_have_the_types_that_training_expects(sqlite: str) -> None:
    space = {"alpha": {"low": 8, "high": 32}, "batch_size": [2, 4], "targets": ["all", "qv"], "epochs": [1, 2]}
    for trial in _run(sqlite, make_plan(space=space, search={"trials": 8})):
        assert isinstance(trial.params["alpha"], float)
        assert isinstance(trial.params["batch_size"], int)
        assert trial.examples == 100 * float(trial.params["epochs"] or 0)


@pytest.mark.parametrize(
    ("search", "space", "objective", "words"),
    [
        ("cmaes", {"batch_size": [2, 4]}, "accuracy", "has values"),
        ("cmaes", {**CONDITIONAL, "schedule": {"values": ["cosine"]}}, "accuracy", "has values"),
        (
            "cmaes",
            {"dropout": {"low": 0.0, "high": 0.2}, "warmup": {"low": 0.0, "high": 0.1, "when": {"rank": [8]}}},
            "accuracy",
            "when",
        ),
        ("cmaes", SPACE, ["accuracy", "loss"], "one metric"),
        ("grid", SPACE, "accuracy", "no step"),
        ("qmc", {}, "accuracy", "space is empty"),
        (
            "tpe",
            {"warmup": {"low": 0.0, "high": 0.1, "when": {"rank": [8]}}, "rank": {"values": [8, 16], "when": {"warmup": [0.0]}}},
            "accuracy",
            "circle",
        ),
        ("tpe", {"warmup": {"low": 0.0, "high": 0.1, "when": {"rankk": [8]}}}, "accuracy", "did you mean 'rank'"),
    ],
)
def test_what_a_sampler_cannot_search_is_refused(search: str, space: Any, objective: Any, words: str, sqlite: str) -> None:
    plan = make_plan(space=space, objective={"metric": objective}, search={"sampler": search})
    with pytest.raises(StudyError, match=words):
        Gateway.open(sqlite, plan, driver="test")
    # Nothing was taken: another spec of that name may run.
    Gateway.open(sqlite, make_plan(), driver="test").close()


def test_an_empty_space_trains_the_default_alone(sqlite: str) -> None:
    assert [trial.number for trial in _run(sqlite, make_plan(space={}))] == [0]


WIDE: dict[str, Any] = {
    **SPACE,
    "rank": {"values": [4, 8, 16]},
    "alpha": {"values": [16]},
    "warmup": {"low": 0.0, "high": 0.2, "step": 0.05},
    "weight_decay": {"low": 0.0, "high": 0.1},
    "batch_size": {"low": 2, "high": 64, "log": True},
}


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"space": WIDE},
        {"space": WIDE, "objective": {"metric": "loss", "direction": "minimize"}},
        {"space": WIDE, "search": {"startup_trials": 1}},
    ],
)
def test_tpe_draws_what_optunas_own_draws(sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def draws() -> list[Mapping[str, object]]:
        search = {"startup_trials": 3, **sections.get("search", {})}
        sampling, found = Sampling(make_plan(**{**sections, "search": search})), []
        for number in range(90):
            # Several trials are asked for before one ends, and one configuration in five is refused as known.
            draw = sampling.draw(number, set(), number)
            assert draw is not None
            used = {sampling.space.signature(draw.params)} if number % 5 == 0 else set()
            draw = sampling.draw(number, used, number)
            assert draw is not None
            found.append(draw.params)
            if number % 4 != 2:
                state = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL][number % 3]
                value = round(quality(draw.params), 1 + number % 2)  # some are equal
                trial = create_trial(
                    state=state,
                    values=[value] if state is TrialState.COMPLETE else None,
                    params=sampling.space.drawn(draw.params),
                    distributions=sampling.space.distributions,
                    intermediate_values={10 * (1 + number % 2): float("nan") if number % 7 == 0 else value},
                    constraints={"loss:max": 0.3 - value} if number % 11 == 0 else None,
                )
                sampling.learn(number, trial)
        return found

    assert fits()
    ours = draws()
    monkeypatch.setattr(samplers, "fits", lambda: False)
    assert draws() == ours
