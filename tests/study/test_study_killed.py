"""Drivers that are killed, stopped and replaced, each a real process: nothing told twice, nothing lost, one writer at a time."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import sqlalchemy as sa

from sweeper.errors import BusyError
from sweeper.records import Action, Done, Ending, Outcome, TrialSpec, TrialState
from sweeper.study.gateway import Gateway
from sweeper.study.read import StudyReader
from tests.study.study_helpers import (
    completed,
    end,
    make_plan,
    next_trial,
    optuna_trials,
    report,
    start_driver,
    train,
    wait_for,
)
from tests.support.mariadb import new_database

DRIVE = """
gateway = Gateway.open(url, make_plan(search={"trials": 5}), driver="first")
train(gateway, next_trial(gateway), lambda nominal: 0.5)
trial, other = next_trial(gateway), next_trial(gateway)
gateway.report(report(trial, 10, 0.6, checkpoint="c/10"))
print("ready", flush=True)
"""


Drive = Callable[[str], list[dict[str, object]]]
"""Goes on with the study in a database until nothing is left; the parameters of its trials."""


def _alive(url: str) -> bool:
    driver = StudyReader(url).driver("study")
    assert driver is not None
    return driver.alive


def test_killed_and_opened_again_at_once(database: str, tmp_path: Path) -> None:
    driver = start_driver(database, DRIVE + "time.sleep(600)", tmp_path)
    wait_for(driver, "ready")
    plan = make_plan(search={"trials": 5})
    with pytest.raises(BusyError, match=str(driver.pid)):
        Gateway.open(database, plan, driver="second")
    assert _alive(database)
    before = {trial.number: trial.params for trial in optuna_trials(database)}
    end(driver)
    assert not _alive(database)
    assert StudyReader(database).sweep("study").status == "interrupted"

    started = time.monotonic()
    gateway = Gateway.open(database, plan, driver="second")
    assert time.monotonic() - started < 10
    assert gateway.lost == (1, 2)
    assert [trial.state.name for trial in optuna_trials(database)] == ["COMPLETE", "WAITING", "WAITING"]
    again = next_trial(gateway)
    assert (again.number, again.attempt, again.resume_from) == (1, 1, "c/10")
    while not isinstance(trial := again or gateway.next(), Done):
        again = None
        train(gateway, trial, lambda nominal: 0.7)
    kinds = Counter(event.key for event in gateway.ledger.pending("t", 1000))
    gateway.close()
    assert max(kinds.values()) == 1
    after = {trial.number: trial.params for trial in optuna_trials(database)}
    assert after.items() >= before.items()
    assert all(trial.state.is_finished() for trial in optuna_trials(database))


def test_a_stopped_driver_that_wakes_up_after_the_takeover_can_write_nothing(database: str, tmp_path: Path) -> None:
    wake = """
time.sleep(0.1)
while not sys.stdin.readline():
    time.sleep(0.05)
from sweeper.errors import FencedError
def batch():
    with gateway.together():
        gateway.report(report(trial, 30, 0.9))
        gateway.end(trial.number, completed(0.9))
        gateway.end(other.number, completed(0.9))
for what in (lambda: gateway.report(report(trial, 20, 0.9)), lambda: gateway.end(other.number, completed(0.9)), gateway.next,
             lambda: gateway.ledger.add_event("winner", None, {}, key="w"), lambda: gateway.ledger.sent("t", 99), batch):
    try:
        what()
        print("WROTE", flush=True)
    except FencedError as error:
        print("fenced:", error, flush=True)
gateway.close()
print("closed", flush=True)
"""
    read, write = os.pipe()
    driver = start_driver(database, DRIVE + wake, tmp_path, stdin=read)
    wait_for(driver, "ready")
    os.kill(driver.pid, signal.SIGSTOP)
    plan = make_plan(search={"trials": 5})
    with pytest.raises(BusyError):
        Gateway.open(database, plan, driver="second")
    gateway = Gateway.open(database, plan, driver="second", stale=0.0)
    assert gateway.term == 2
    again = next_trial(gateway)
    os.kill(driver.pid, signal.SIGCONT)
    os.write(write, b"go\n")
    for _ in range(6):
        assert "another driver has taken over" in wait_for(driver, "")
    wait_for(driver, "closed")
    end(driver)
    os.close(read)
    os.close(write)
    assert gateway.report(report(again, 10, 0.3)).action is Action.CONTINUE
    gateway.interrupt()
    gateway.close()
    trials = optuna_trials(database)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "WAITING", "WAITING"]
    assert trials[1].intermediate_values == {10: 0.6}
    assert not _alive(database)


def test_a_decision_to_stop_outlives_the_driver(sqlite: str, tmp_path: Path) -> None:
    stop = """
from sweeper.study.gateway import Gateway
gateway = Gateway.open(url, make_plan(search={"trials": 6}), driver="first")
trials = [next_trial(gateway) for _ in range(5)]
for trial, value in zip(trials, [0.9, 0.8, 0.7, 0.2, float("nan")]):
    print(gateway.report(report(trial, 10, value)).action)
print("ready", flush=True)
time.sleep(600)
"""
    driver = start_driver(sqlite, stop, tmp_path)
    wait_for(driver, "ready")
    end(driver)
    gateway = Gateway.open(sqlite, make_plan(search={"trials": 6}), driver="second")
    assert gateway.lost == (0, 1)
    gateway.close()
    views = StudyReader(sqlite).trials("study")
    assert [view.state for view in views] == [
        TrialState.WAITING,
        TrialState.WAITING,
        TrialState.PRUNED,
        TrialState.PRUNED,
        TrialState.FAIL,
    ]
    assert "not among the best" in views[3].reason


def _drive_to_the_end(url: str) -> list[dict[str, object]]:
    """Goes on with the study until nothing is left; one trial fails, one is preempted once, one is pruned."""
    plan = make_plan(search={"trials": 5, "rungs": [0.5], "sampler": "random"}, evaluate={"every": 50})
    gateway = Gateway.open(url, plan, driver="test")
    while not isinstance(trial := gateway.next(), Done):
        assert isinstance(trial, TrialSpec)
        if trial.number == 1:
            gateway.end(1, Outcome(Ending.FAILED, "out of luck"))
        elif trial.number == 2 and trial.attempt == 0:
            gateway.end(2, Outcome(Ending.PREEMPTED, checkpoint="c"))
        else:
            train(gateway, trial, lambda nominal, trial=trial: (10 - trial.number) * nominal / 1000)
    gateway.close()
    return [dict(trial.params) for trial in optuna_trials(url)]


def _drive_together(url: str) -> list[dict[str, object]]:
    """The same trials, two of them at once, with all that happens in a turn told together."""
    plan = make_plan(search={"trials": 5, "rungs": [0.5], "sampler": "random"}, evaluate={"every": 50})
    gateway = Gateway.open(url, plan, driver="test")
    running: dict[int, tuple[TrialSpec, int]] = {}
    while True:
        with gateway.together():
            while len(running) < 2 and isinstance(trial := gateway.next(), TrialSpec):
                running[trial.number] = (trial, 0)
        if not running:
            break
        with gateway.together():
            ended = [number for number, (trial, index) in running.items() if _goes_on(gateway, trial, index)]
        running = {number: (trial, index + 1) for number, (trial, index) in running.items() if number not in ended}
    gateway.close()
    return [dict(trial.params) for trial in optuna_trials(url)]


def _goes_on(gateway: Gateway, trial: TrialSpec, index: int) -> bool:
    """The next thing that happens to a trial of `_drive_to_the_end`; whether it ended."""
    if trial.number == 1:
        return gateway.end(1, Outcome(Ending.FAILED, "out of luck")).is_finished()
    if trial.number == 2 and trial.attempt == 0:
        return gateway.end(2, Outcome(Ending.PREEMPTED, checkpoint="c")) is TrialState.WAITING
    value = (10 - trial.number) * trial.evaluations[index] / 1000
    decision = gateway.report(report(trial, trial.evaluations[index], value, checkpoint=f"c/{index}"))
    if decision.action is Action.STOP:
        outcome = Outcome(Ending.PRUNED, decision.reason, nominal=trial.evaluations[index])
        return gateway.end(trial.number, outcome).is_finished()
    return index == 1 and gateway.end(trial.number, completed(value)).is_finished()


def _die_at_commit(url: str, count: int, drive: Drive, *, after: bool) -> bool:
    """Drives in a forked process that is killed at its `count`-th commit, before or after it; whether it came that far."""
    pid = os.fork()
    if pid == 0:
        left = [count]

        def commit(connection: sa.Connection) -> None:
            left[0] -= 1
            if left[0] == 0:
                if after:
                    connection.connection.commit()
                os.kill(os.getpid(), signal.SIGKILL)

        sa.event.listen(sa.engine.Engine, "commit", commit)
        try:
            drive(url)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


STRIDE = 5
"""Of all commits that a driver makes, one in so many is tried; 1 takes minutes."""


def test_killed_at_any_commit_the_study_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    tried = _kill_at_commits(itertools.count(1, STRIDE), lambda count: f"sqlite:///{tmp_path / f'{count}.db'}", tmp_path)
    assert tried > 35


def test_killed_at_any_commit_of_what_is_told_together(tmp_path: Path) -> None:
    counts, stride = itertools.count(2, 3), lambda count: f"sqlite:///{tmp_path / f'{count}.db'}"
    assert _kill_at_commits(counts, stride, tmp_path, _drive_together) > 20


def test_killed_at_two_commits_on_a_server_it_ends_as_on_a_file(mariadb: str, tmp_path: Path) -> None:
    assert _kill_at_commits((17, 32), lambda count: new_database(mariadb, f"killed_{count}"), tmp_path) == 32


def _kill_at_commits(counts: Iterable[int], new_url: Callable[[int], str], tmp_path: Path, drive: Drive = _drive_to_the_end) -> int:
    """Kills a driver at its `count`-th commit, each time in a new database, until one has less; returns the last count."""
    whole = _drive_to_the_end(f"sqlite:///{tmp_path / 'whole.db'}")
    for count in counts:
        url = new_url(count)
        died = _die_at_commit(url, count, drive, after=count % 2 == 0)
        assert drive(url) == whole, count
        told, reader = optuna_trials(url), StudyReader(url)
        views = reader.trials("study")
        assert [str(view.state) for view in views] == ["COMPLETE", "FAIL", "COMPLETE", "PRUNED", "PRUNED"], count
        assert [trial.state.name for trial in told] == [str(view.state) for view in views], count
        for view, trial in zip(views, told, strict=True):
            first = {row.nominal: row.metrics["validation/accuracy"] for row in reversed(reader.reports("study", view.number))}
            assert first == trial.intermediate_values, count
            assert view.value == (trial.value if view.state is TrialState.COMPLETE else None), count
        engine = sa.create_engine(url)
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM swp_events WHERE NOT done").scalar() == 0, count
            ends = "SELECT count(*) FROM swp_events WHERE kind = 'trial_ended' AND payload NOT LIKE '%\"state\": \"WAITING\"%'"
            assert connection.execute(sa.text(ends)).scalar() == 5, count
        engine.dispose()
        if not died:
            break
    return count
