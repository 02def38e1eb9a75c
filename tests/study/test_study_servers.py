"""What sets servers apart from a file: several drivers at once, locks that outlive a stopped one, other text and other numbers."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import sqlalchemy as sa

from sweeper.errors import FencedError, ResourceError, StudyError
from sweeper.records import Done, Ending, Outcome, TrialState
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

_COUNT = itertools.count()


@pytest.fixture
def maria(mariadb: str) -> str:
    """URL of an empty database on a MariaDB server."""
    return new_database(mariadb, f"server_{next(_COUNT)}")


@pytest.fixture(params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> str:
    """URL of an empty database on each kind of server."""
    if request.param == "mariadb":
        return str(request.getfixturevalue("maria"))
    url = sa.make_url(request.getfixturevalue("postgres"))
    name = f"server_{next(_COUNT)}"
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    return url.set(database=name).render_as_string(hide_password=False)


def test_several_drivers_open_an_empty_database_and_work_beside_each_other(server: str) -> None:
    problems: list[BaseException] = []

    def drive(name: str) -> None:
        try:
            plan = make_plan(name=name, search={"trials": 4, "sampler": "random", "pruner": "none"})
            gateway = Gateway.open(server, plan, driver=name)
            while not isinstance(trial := gateway.next(), Done):
                train(gateway, trial, lambda nominal: nominal / 100)  # type: ignore[arg-type]
            gateway.close()
        except BaseException as error:
            problems.append(error)

    names = ["one", "three", "two"]
    threads = [threading.Thread(target=drive, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert problems == []
    reader = StudyReader(server)
    assert sorted(reader.studies()) == names
    assert [[trial.value for trial in reader.trials(name)] for name in names] == [[1.0] * 4] * 3


def test_a_driver_that_was_stopped_inside_a_transaction_neither_blocks_the_study_nor_finishes_it(
    server: str, tmp_path: Path
) -> None:
    hold = """
import os, signal
from sweeper.study import fence
fence._IDLE_SECONDS = 3
gateway = Gateway.open(url, make_plan(), driver="first")
next_trial(gateway)
try:
    with gateway.ledger.begin() as connection:
        print("holds", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        gateway.ledger.write_event(connection, "winner", None, {}, "late")
    print("WROTE", flush=True)
except Exception as error:
    print("refused:", type(error).__name__, flush=True)
os._exit(0)
"""
    driver = start_driver(server, hold, tmp_path)
    wait_for(driver, "holds")
    until = time.monotonic() + 30
    while psutil.Process(driver.pid).status() != psutil.STATUS_STOPPED and time.monotonic() < until:
        time.sleep(0.01)
    gateway = Gateway.open(server, make_plan(), driver="second", stale=0.0)
    assert gateway.lost == (0,)
    os.kill(driver.pid, signal.SIGCONT)
    assert "refused" in wait_for(driver, "")
    assert "late" not in {event.key for event in gateway.ledger.pending("t", 100)}
    gateway.close()
    end(driver)


def test_names_that_differ_by_case_are_two_studies(maria: str) -> None:
    for name, value in (("Demo", 0.25), ("demo", 0.75)):
        gateway = Gateway.open(maria, make_plan(name=name, search={"trials": 1}), driver="test")
        assert next_trial(gateway).number == 0
        gateway.end(0, completed(value))
        gateway.close()
    reader = StudyReader(maria)
    assert reader.studies() == ["Demo", "demo"]
    assert [reader.trial(name, 0).value for name in ("Demo", "demo")] == [0.25, 0.75]
    assert [optuna_trials(maria, name)[0].value for name in ("Demo", "demo")] == [0.25, 0.75]
    with pytest.raises(StudyError, match="no study 'DEMO'"):
        reader.plan("DEMO")


def test_text_of_any_length_and_letters_comes_back(maria: str) -> None:
    gateway = Gateway.open(maria, make_plan(search={"trials": 1}), driver="test")
    next_trial(gateway)
    reason = "out of memory \N{SKULL} at 90\N{DEGREE SIGN}, 中文, '%s' \\ \"quoted\"; " + "x" * 100_000
    gateway.end(0, Outcome(Ending.FAILED, reason))
    gateway.ledger.add_event("winner", 0, {"text": reason}, key="\N{SPORTS MEDAL}")
    assert gateway.ledger.pending("t", 10)[-1].payload["text"] == reason
    gateway.close()
    view = StudyReader(maria).trial("study", 0)
    assert (view.state, view.reason) == (TrialState.FAIL, reason)
    assert optuna_trials(maria)[0].user_attrs["reason"] == reason[:2000]


def test_numbers_come_back_to_the_last_digit_and_infinity_too(maria: str) -> None:
    values = {"third": 1 / 3, "tiny": 5e-324, "large": 1.7e308, "up": float("inf"), "down": float("-inf"), "none": float("nan")}
    gateway = Gateway.open(maria, make_plan(), driver="test")
    trial = next_trial(gateway)
    gateway.report(report(trial, 10, 0.1 + 0.2, metrics={"validation/accuracy": 0.1 + 0.2, **values}))
    gateway.close()
    found = dict(StudyReader(maria).reports("study", 0)[0].metrics)
    assert repr(found.pop("none")) == "nan"
    assert found == {"validation/accuracy": 0.1 + 0.2, **{key: value for key, value in values.items() if key != "none"}}
    assert optuna_trials(maria)[0].intermediate_values == {10: 0.1 + 0.2}


def test_what_is_too_long_is_refused_and_not_cut(maria: str) -> None:
    engine = sa.create_engine(maria, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        before = connection.execute(sa.text("SELECT @@GLOBAL.sql_mode")).scalar()
        connection.execute(sa.text("SET GLOBAL sql_mode = ''"))
    try:
        gateway = Gateway.open(maria, make_plan(), driver="test")
        with pytest.raises(sa.exc.DataError, match="too long"):
            gateway.ledger.add_event("winner", None, {}, key="k" * 301)
        gateway.close()
    finally:
        with engine.connect() as connection:
            connection.execute(sa.text("SET GLOBAL sql_mode = :before"), {"before": before})


def test_tables_that_a_killed_driver_left_half_made_are_made_anew(maria: str) -> None:
    for statement in ("CREATE TABLE swp_fence", "CREATE INDEX ix_swp_events_order", "CREATE VIEW sweeper_decisions"):
        pid = os.fork()
        if pid == 0:

            def die(_c: Any, _k: Any, text: str, *_more: Any, word: str = statement) -> None:
                if word in text:
                    os.kill(os.getpid(), signal.SIGKILL)

            sa.event.listen(sa.engine.Engine, "before_cursor_execute", die)
            try:
                Gateway.open(maria, make_plan(), driver="first")
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, statement
        assert not StudyReader.exists(maria)
        assert StudyReader(maria).studies() == []
    gateway = Gateway.open(maria, make_plan(), driver="second")
    assert next_trial(gateway).number == 0
    gateway.close()
    assert StudyReader(maria).studies() == ["study"]


def test_a_study_that_optuna_alone_made_stays_readable_and_is_left_alone(maria: str) -> None:
    study = optuna.create_study(study_name="study", storage=maria)
    study.tell(study.ask(), 1.0)
    with pytest.raises(StudyError, match="did not make"):
        Gateway.open(maria, make_plan(), driver="test")
    Gateway.open(maria, make_plan(name="Study"), driver="test").close()
    assert optuna_trials(maria)[0].value == 1.0


def test_a_wrong_password_or_database_is_one_sentence(maria: str) -> None:
    url = sa.make_url(maria)
    for wrong, words in ((url.set(password="hunter3"), "Access denied"), (url.set(database="nowhere"), "Unknown database")):
        for attempt in (Gateway.open, lambda text, *_more, **_options: StudyReader(text).studies()):
            with pytest.raises(ResourceError, match=words) as caught:
                attempt(wrong.render_as_string(hide_password=False), make_plan(), driver="test")
            assert "hunter" not in str(caught.value)
            assert "\n" not in str(caught.value)


def test_connections_that_the_server_has_closed_are_opened_again(maria: str) -> None:
    gateway = Gateway.open(maria, make_plan(), driver="test")
    trial = next_trial(gateway)
    engine = sa.create_engine(maria, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        others = "SELECT ID FROM information_schema.PROCESSLIST WHERE DB = DATABASE() AND ID <> CONNECTION_ID()"
        found = list(connection.execute(sa.text(others)).scalars())
        assert found
        for number in found:
            connection.execute(sa.text(f"KILL {number}"))
    assert gateway.end(trial.number, completed(0.5)) is TrialState.COMPLETE
    gateway.close()
    with pytest.raises(FencedError):
        gateway.ledger.add_event("winner", None, {}, key="late")
