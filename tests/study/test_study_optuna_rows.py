"""Optuna's rows written by statements: the same as its own storage writes, and its own storage is asked where they do not fit."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
import sqlalchemy as sa

from sweeper.errors import StudyError
from sweeper.records import Done, Ending, Outcome, TrialSpec
from sweeper.study import optuna_rows
from sweeper.study.gateway import Gateway
from tests.study.study_helpers import make_plan, next_trial, optuna_trials, report, train

SPACE: dict[str, Any] = {
    "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
    "batch_size": {"low": 2, "high": 16, "step": 2},
    "schedule": {"values": ["linear", "cosine"]},
    "dropout": {"low": 0.0, "high": 0.3, "step": 0.1},
}
TABLES = ("trials", "trial_params", "trial_values", "trial_intermediate_values", "trial_user_attributes", "trial_system_attributes")


def _drive(url: str, name: str) -> list[dict[str, object]]:
    """Trials that complete, are pruned, fail, go on elsewhere and repeat a rung; what the sampler learned of them."""
    plan = make_plan(name=name, space=SPACE, search={"trials": 7, "rungs": [0.5], "startup_trials": 2}, evaluate={"every": 50})
    gateway = Gateway.open(url, plan, driver="test")
    while not isinstance(trial := gateway.next(), Done):
        assert isinstance(trial, TrialSpec)
        if trial.number == 1:
            gateway.end(1, Outcome(Ending.FAILED, "out of luck"))
        elif trial.number == 2 and trial.attempt == 0:
            gateway.report(report(trial, 50, 0.45))
            gateway.end(2, Outcome(Ending.PREEMPTED, checkpoint="c"))
        elif trial.number == 3:
            gateway.report(report(trial, 50, float("nan")))
            gateway.end(3, Outcome(Ending.FAILED, nominal=50))
        else:
            train(gateway, trial, lambda nominal, trial=trial: (10 - trial.number) * nominal / 1000)
    learned = [
        {
            "state": trial.state,
            "values": trial.values,
            "params": trial.params,
            "curve": trial.intermediate_values,
            "system": trial.system_attrs,
        }
        for trial in gateway._writes._sampling.learned()
    ]
    gateway.close()
    return learned


def _rows(url: str, name: str) -> dict[str, list[dict[str, Any]]]:
    """Optuna's rows of a study, trials by their number, without times and other ids."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        study = connection.execute(sa.text("SELECT study_id FROM studies WHERE study_name = :n"), {"n": name}).scalar()
        trials = connection.execute(sa.text("SELECT * FROM trials WHERE study_id = :s"), {"s": study}).mappings().all()
        numbers = {row["trial_id"]: row["number"] for row in trials}
        found: dict[str, list[dict[str, Any]]] = {}
        for table in TABLES:
            rows = connection.execute(sa.text(f"SELECT * FROM {table}")).mappings().all()
            mine = [
                {"number": numbers[row["trial_id"]]}
                | {key: value for key, value in row.items() if not key.endswith("_id")}
                | ({key: row[key] is not None for key in row if key.startswith("datetime")})
                for row in rows
                if row["trial_id"] in numbers
            ]
            found[table] = sorted(mine, key=lambda row: str([row[key] for key in sorted(row)]))
    engine.dispose()
    return found


def test_the_rows_are_those_that_optunas_own_storage_writes(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = _drive(database, "fast")
    assert {state.name for state in (trial.state for trial in optuna_trials(database, "fast"))} == {"COMPLETE", "PRUNED", "FAIL"}
    monkeypatch.setattr(optuna_rows, "SCHEMA", "one that is not known")
    assert _drive(database, "slow") == learned
    fast, slow = _rows(database, "fast"), _rows(database, "slow")
    assert all(fast[table] for table in TABLES[:5])
    assert fast == slow
    pair = [optuna_trials(database, name) for name in ("fast", "slow")]
    for one, other in zip(*pair, strict=True):
        assert abs((one.datetime_start - other.datetime_start).total_seconds()) < 600
        assert one.duration is not None
        assert (one.params, one.distributions, one.values) == (other.params, other.distributions, other.values)


def test_the_schema_is_that_of_the_optuna_installed(sqlite: str) -> None:
    storage = optuna.storages.RDBStorage(sqlite)
    assert storage.get_head_version() == optuna_rows.SCHEMA
    storage.engine.dispose()


def test_a_trial_that_somebody_ended_in_optuna_is_not_ended_again(sqlite: str) -> None:
    gateway = Gateway.open(sqlite, make_plan(), driver="test")
    trial = next_trial(gateway)
    gateway.report(report(trial, 10, 0.5))
    storage = optuna.storages.RDBStorage(sqlite)
    optuna.load_study(study_name="study", storage=storage).tell(0, 0.9)
    storage.engine.dispose()
    gateway.report(report(trial, 20, 0.6))
    gateway.end(0, Outcome(Ending.FAILED, "too late"))
    gateway.close()
    told = optuna_trials(sqlite)[0]
    assert (told.state.name, told.value, told.intermediate_values) == ("COMPLETE", 0.9, {10: 0.5})


def test_a_trial_that_somebody_added_in_optuna_is_found_out(sqlite: str) -> None:
    gateway = Gateway.open(sqlite, make_plan(), driver="test")
    next_trial(gateway)
    storage = optuna.storages.RDBStorage(sqlite)
    optuna.load_study(study_name="study", storage=storage).ask()
    storage.engine.dispose()
    with pytest.raises(StudyError, match="numbered a new trial 2 where 1 was next"):
        gateway.next()
    assert len(optuna_trials(sqlite)) == 2
    gateway.close()
