"""A small study and a pretended executor: plans, reports, and drivers in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from sweeper.records import Action, Decision, Ending, Outcome, Report, ReportKind, TrialSpec, TrialState
from sweeper.spec.models import SweepSpec
from sweeper.study.gateway import Gateway
from sweeper.study.plan import StudyPlan, plan_study

ROOT = Path(__file__).parents[2]

SPACE: dict[str, Any] = {
    "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
    "batch_size": {"low": 2, "high": 16},
    "dropout": {"low": 0.0, "high": 0.3},
}


def make_spec(**sections: Any) -> SweepSpec:
    """A spec with whole sections replaced; `search` is merged into few trials."""
    search = {"trials": 6, "startup_trials": 3, **sections.pop("search", {})}
    whole = {
        "schema": 1,
        "name": "study",
        "model": "tiny",
        "data": {"path": "rows.csv", "task": "classify"},
        "space": SPACE,
        "objective": {"metric": "accuracy", "direction": "maximize"},
        **sections,
    }
    return SweepSpec.model_validate({**whole, "search": search})


def make_plan(*, identity: Any = "one", chance: float | None = None, train_rows: int = 100, **sections: Any) -> StudyPlan:
    """The plan of such a spec; a full budget is 100 examples, evaluated every 10, with one rung at 10."""
    return plan_study(
        make_spec(**sections),
        identity=identity,
        spec_document={"name": "study"},
        train_rows=train_rows,
        chance=chance,
        data_fingerprint="data",
        versions={"sweeper": "0"},
    )


def report(trial: TrialSpec, nominal: int, value: float | None, **more: Any) -> Report:
    """A report of accuracy (and loss) at an evaluation of the trial."""
    metrics = {} if value is None else {"validation/accuracy": value, "validation/loss": 1 - value}
    kind = ReportKind.RUNG if nominal in trial.rungs else ReportKind.EVALUATION
    time_ms = 1_700_000_000_000 + nominal
    fields = {"examples": nominal + 3, "step": nominal // 2, "time_ms": time_ms, "metrics": metrics, "attempt": trial.attempt}
    return Report(trial.number, kind, nominal, **{**fields, **more})


def completed(value: float, **more: Any) -> Outcome:
    """A trial that went to its end with this accuracy."""
    metrics = {"validation/accuracy": value, "validation/loss": 1 - value}
    return Outcome(Ending.COMPLETED, metrics=metrics, examples=100, nominal=100, **more)


def train(gateway: Gateway, trial: TrialSpec, value: Callable[[int], float]) -> tuple[TrialState, list[Decision]]:
    """Trains a trial as an executor does: reports every evaluation, obeys STOP, ends."""
    decisions = []
    for nominal in trial.evaluations:
        decision = gateway.report(report(trial, nominal, value(nominal)))
        decisions.append(decision)
        if decision.action is Action.STOP:
            pruned = Outcome(Ending.PRUNED, decision.reason, nominal=nominal, examples=nominal + 3)
            return gateway.end(trial.number, pruned), decisions
    return gateway.end(trial.number, completed(value(trial.evaluations[-1]))), decisions


def next_trial(gateway: Gateway) -> TrialSpec:
    """The next trial; it is an error if there is none."""
    trial = gateway.next()
    assert isinstance(trial, TrialSpec), trial
    return trial


def quality(params: Mapping[str, Any]) -> float:
    """A value in (0, 1) that depends on the parameters alone."""
    return 1 / (1 + abs(float(params["learning_rate"]) - 3e-4) * 1e3 + float(params["dropout"]))


def optuna_trials(url: str, name: str = "study") -> list[FrozenTrial]:
    """A study's trials, as plain Optuna reads them."""
    storage = optuna.storages.RDBStorage(url)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    storage.engine.dispose()
    return trials


def start_driver(url: str, script: str, folder: Path, stdin: int | None = None) -> subprocess.Popen[str]:
    """Runs `script` in a process of its own, with `url` defined and this module imported; its output comes line by line."""
    text = f"import sys, time\nfrom tests.study.study_helpers import *\nurl = {url!r}\n{script}\n"
    path = folder / "driver.py"
    path.write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(path)]
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def wait_for(process: subprocess.Popen[str], word: str, seconds: float = 60) -> str:
    """The first line of output that holds `word`."""
    until = time.monotonic() + seconds
    assert process.stdout is not None
    seen = ""
    while time.monotonic() < until:
        line = process.stdout.readline()
        seen += line
        if word in line:
            return line
        if not line and process.poll() is not None:
            break
    raise AssertionError(f"{word!r} never came; the driver said:\n{seen}")


def end(process: subprocess.Popen[str]) -> None:
    """Kills a driver (SIGKILL) and waits for it."""
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
