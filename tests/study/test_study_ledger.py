"""The outbox and the ledger's rows, from the threads that use them; what people and plain tools see of a study."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from sweeper.errors import FencedError, ResourceError, StudyError
from sweeper.records import Ending, Outcome, ReportKind, TrialState
from sweeper.study import migrate
from sweeper.study.database import refuse_network_file_system
from sweeper.study.gateway import Gateway
from sweeper.study.plan import plan_from_json
from sweeper.study.read import StudyReader
from sweeper.study.rungs import clock, default_every, study_rungs
from sweeper.study.tables import METADATA
from tests.study.study_helpers import completed, make_plan, next_trial, optuna_trials, quality, report, train


def _small_sweep(url: str) -> None:
    gateway = Gateway.open(url, make_plan(search={"trials": 6}), driver="test")
    for _ in range(6):
        trial = next_trial(gateway)
        train(gateway, trial, lambda nominal, trial=trial: quality(trial.params) * nominal / 100)
    gateway.close()


def test_the_outbox_tells_everything_once_and_in_order(database: str) -> None:
    gateway = Gateway.open(database, make_plan(search={"trials": 4}), driver="test")
    ledger = gateway.ledger
    ledger.add_event("sweep_started", None, {"spec": {}}, key="sweep_started")
    ledger.add_event("sweep_started", None, {"spec": {"again": True}}, key="sweep_started")
    trial = next_trial(gateway)
    gateway.report(report(trial, 10, 0.5))
    gateway.end(0, completed(0.6, adapter="adapters/0"))

    events = ledger.pending("mlflow")
    assert [event.kind for event in events] == ["sweep_started", "trial_started", "report", "decision", "trial_ended"]
    assert [event.trial for event in events] == [None, 0, 0, 0, 0]
    assert [a.id < b.id for a, b in itertools.pairwise(events)] == [True] * 4
    assert events[0].payload == {"spec": {}}
    assert events[1].payload["params"] == trial.params
    assert (events[2].payload["nominal"], events[2].payload["examples"], events[2].payload["kind"]) == (10, 13, "rung")
    assert events[3].payload["action"] == "continue"
    assert (events[4].payload["state"], events[4].payload["adapter"]) == ("COMPLETE", "adapters/0")

    assert ledger.pending("mlflow", limit=2) == events[:2]
    ledger.sent("mlflow", events[1].id)
    assert ledger.pending("mlflow") == events[2:]
    assert ledger.pending("wandb") == events
    assert ledger.tracker_run("mlflow", 0) is None
    ledger.set_tracker_run("mlflow", None, "parent")
    ledger.set_tracker_run("mlflow", 0, "first")
    ledger.set_tracker_run("mlflow", 0, "second")
    assert (ledger.tracker_run("mlflow", None), ledger.tracker_run("mlflow", 0)) == ("parent", "second")
    ledger.sent("mlflow", events[1].id, {0: "third", 1: "other"})
    assert ledger.tracker_runs("mlflow") == {0: "third", 1: "other"}
    assert ledger.tracker_runs("another") == {}
    gateway.close()

    gateway = Gateway.open(database, make_plan(search={"trials": 4}), driver="test")
    assert gateway.ledger.pending("mlflow") == events[2:]
    assert gateway.ledger.tracker_run("mlflow", None) == "parent"
    gateway.close()


def test_another_thread_reads_the_outbox_while_the_driver_writes(database: str) -> None:
    gateway = Gateway.open(database, make_plan(search={"trials": 40, "pruner": "none", "sampler": "random"}), driver="test")
    seen: list[int] = []
    problems: list[BaseException] = []
    stop = threading.Event()

    def pump() -> None:
        try:
            while not stop.is_set() or gateway.ledger.pending("t"):
                for event in gateway.ledger.pending("t", limit=7):
                    seen.append(event.id)
                    gateway.ledger.sent("t", event.id)
                    gateway.ledger.set_tracker_run("t", event.trial, f"run-{event.trial}")
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=pump)
    thread.start()
    for _ in range(6):
        train(gateway, next_trial(gateway), lambda nominal: nominal / 100)
    stop.set()
    thread.join(timeout=60)
    gateway.close()
    assert not problems
    # A start, ten reports, a decision at the rung, an end.
    assert len(seen) == 6 * 13
    assert seen == sorted(set(seen))


def test_after_closing_nothing_may_be_written(sqlite: str) -> None:
    gateway = Gateway.open(sqlite, make_plan(), driver="test")
    gateway.close()
    gateway.close()
    with pytest.raises(FencedError, match="closed"):
        gateway.ledger.add_event("winner", None, {}, key="late")
    with pytest.raises(FencedError, match="closed"):
        gateway.next()


def test_plain_optuna_reads_the_study_without_sweeper(sqlite: str) -> None:
    _small_sweep(sqlite)
    script = """
import json, sys, optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.load_study(study_name="study", storage=sys.argv[1])
assert not any(name.startswith("sweeper") for name in sys.modules)
print(json.dumps([[t.state.name, len(t.params), sorted(t.intermediate_values)] for t in study.trials]))
print(json.dumps(study.metric_names))
"""
    command = [sys.executable, "-c", script, sqlite]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    trials = json.loads(answer[0])
    assert {state for state, _, _ in trials} == {"COMPLETE", "PRUNED"}
    assert all(count == 3 for _, count, _ in trials)
    assert all(steps == ([10] if state == "PRUNED" else list(range(10, 101, 10))) for state, _, steps in trials)
    assert json.loads(answer[1]) == ["validation/accuracy"]
    upgrade = [sys.executable, "-m", "optuna.cli", "storage", "upgrade", "--storage", sqlite]
    done = subprocess.run(upgrade, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_deleting_the_study_in_optuna_works_and_is_noticed(two_databases: str) -> None:
    _small_sweep(two_databases)
    storage = optuna.storages.RDBStorage(two_databases)
    optuna.delete_study(study_name="study", storage=storage)
    assert optuna.get_all_study_names(storage) == []
    storage.engine.dispose()
    with pytest.raises(StudyError, match="lacks trial 0"):
        Gateway.open(two_databases, make_plan(search={"trials": 6}), driver="test")


def test_views_answer_questions_in_plain_sql(database: str) -> None:
    _small_sweep(database)
    engine = sa.create_engine(database, poolclass=sa.NullPool)
    with engine.connect() as connection:
        best = connection.exec_driver_sql(
            "SELECT trial, value, learning_rate FROM sweeper_trials WHERE state = 'COMPLETE' ORDER BY value DESC LIMIT 1"
        ).one()
        stopped = connection.exec_driver_sql(
            "SELECT trial, nominal, value, cutoff, ranking FROM sweeper_decisions WHERE action = 'stop' ORDER BY trial"
        ).all()
        curve = connection.exec_driver_sql(
            "SELECT nominal, value FROM sweeper_reports WHERE trial = 0 AND metric = 'validation/accuracy' ORDER BY nominal"
        ).all()
        share = connection.exec_driver_sql("SELECT state, COUNT(*), SUM(examples) FROM sweeper_trials GROUP BY state").all()
        starts = connection.exec_driver_sql("SELECT started, ended FROM sweeper_trials").all()
    engine.dispose()
    trials = {trial.number: trial for trial in optuna_trials(database)}
    assert trials[best.trial].value == best.value
    assert trials[best.trial].params["learning_rate"] == best.learning_rate
    assert [row.trial for row in stopped] == [number for number, trial in trials.items() if trial.state.name == "PRUNED"]
    assert all(row.value < row.cutoff and row.ranking > 1 for row in stopped)
    assert dict(map(tuple, curve)) == trials[0].intermediate_values
    assert sum(row[1] for row in share) == 6
    assert all(len(row.started) == 19 and row.started <= row.ended for row in starts)


def test_migrations_make_exactly_the_tables_and_leave_optunas_alone(database: str) -> None:
    Gateway.open(database, make_plan(), driver="test").close()
    engine = sa.create_engine(database, poolclass=sa.NullPool)

    def ours(name: str | None, kind: str, _parents: object) -> bool:
        return kind != "table" or (name or "").startswith("swp_")

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": ours, "version_table": migrate.VERSION_TABLE})
        assert compare_metadata(context, METADATA) == []
        assert migrate.version(connection) == migrate.HEAD
        names = set(sa.inspect(connection).get_table_names())
    assert {"trials", "studies", "alembic_version", migrate.VERSION_TABLE} <= names
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == migrate.HEAD
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {migrate.VERSION_TABLE} SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(StudyError, match="update Sweeper"):
        Gateway.open(database, make_plan(), driver="test")


def test_a_copied_database_is_read_where_nothing_can_be_written(sqlite: str, tmp_path: Path) -> None:
    _small_sweep(sqlite)
    folder = tmp_path / "copy"
    folder.mkdir()
    shutil.copy(tmp_path / "study.db", folder / "study.db")
    (folder / "study.db").chmod(0o444)
    folder.chmod(0o555)
    try:
        reader = StudyReader(f"sqlite:///{folder / 'study.db'}")
        assert reader.studies() == ["study"]
        assert reader.trials("study") == StudyReader(sqlite).trials("study")
    finally:
        folder.chmod(0o755)


def test_reading_beside_a_running_driver(database: str) -> None:
    gateway = Gateway.open(database, make_plan(search={"trials": 3}), driver="me")
    trial = next_trial(gateway)
    gateway.report(
        report(trial, 10, 0.5, train_seconds=1.5, evaluate_seconds=0.5, tokens=70, worker="w1", outcomes="o/10", rows=20)
    )
    reader = StudyReader(database)
    view = reader.trial("study", 0)
    assert (view.state, view.examples, view.nominal, view.seconds, view.tokens, view.worker, view.outcomes) == (
        TrialState.RUNNING,
        13,
        10,
        2.0,
        70,
        "w1",
        "o/10",
    )
    assert view.metrics["validation/accuracy"] == 0.5
    driver = reader.driver("study")
    assert driver is not None
    assert (driver.alive, driver.driver) == (True, "me")
    assert reader.sweep("study").status == "running"
    assert reader.best("study") is None
    assert reader.reports("study", 0)[0].kind is ReportKind.RUNG
    assert reader.decisions("study", 0)[0].action.value == "continue"
    gateway.end(0, Outcome(Ending.PREEMPTED, checkpoint="c"))
    again = next_trial(gateway)
    gateway.end(again.number, completed(0.9, train_seconds=2.0, evaluate_seconds=0.25, tokens=30, worker="w2"))
    view = reader.trial("study", 0)
    assert (view.seconds, view.tokens, view.worker, view.attempts) == (4.25, 100, "w2", 2)
    gateway.close()


def test_what_is_not_there_is_said_in_a_sentence(tmp_path: Path, sqlite: str) -> None:
    missing = f"sqlite:///{tmp_path / 'none.db'}"
    assert not StudyReader.exists(missing)
    with pytest.raises(ResourceError, match="no study database"):
        StudyReader(missing)
    assert not (tmp_path / "none.db").exists()
    sqlite3.connect(tmp_path / "empty.db").close()
    assert not StudyReader.exists(f"sqlite:///{tmp_path / 'empty.db'}")
    Gateway.open(sqlite, make_plan(), driver="test").close()
    assert StudyReader.exists(sqlite)
    with pytest.raises(StudyError, match="did you mean 'study'"):
        StudyReader(sqlite).plan("studdy")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("no url at all", "no database URL"),
        ("mssql+pyodbc://host/x", "allowed: sqlite, postgresql, mysql, mariadb"),
        ("oracle://host/x", "names a oracle database; allowed: "),
        ("postgresql+asyncpg://host/x", "allowed for postgresql: psycopg, psycopg2, pg8000"),
        ("mariadb+aiomysql://host/x", "allowed for mariadb: pymysql, mysqldb, mysqlconnector"),
        ("sqlite://", "in memory"),
        ("sqlite:////nowhere/at/all/study.db", "out of reach"),
        ("postgresql+psycopg://someone:hunter2@127.0.0.1:1/x", "out of reach"),
        ("mysql://someone:hunter2@127.0.0.1:1/x", "out of reach"),
        ("mariadb://someone@127.0.0.1:1/x?password=hunter2", "out of reach"),
        ("mysql+mysqldb://someone:hunter2@127.0.0.1:1/x", "is not installed .*pip install 'mysqlclient'"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_sentence_without_its_password(url: str, words: str) -> None:
    with pytest.raises(ResourceError, match=words) as caught:
        Gateway.open(url, make_plan(), driver="test")
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("This is a diary, not a database. " * 100)
    with pytest.raises(ResourceError, match="not a database"):
        Gateway.open(f"sqlite:///{tmp_path / 'study.db'}", make_plan(), driver="test")


def test_sqlite_on_a_network_file_system_is_refused(tmp_path: Path) -> None:
    mounts = f"/dev/sda / ext4 rw 0 0\nhost:/x {tmp_path} nfs4 rw 0 0\ntmpfs {tmp_path}/local tmpfs rw 0 0\n"
    with pytest.raises(ResourceError, match=r"network file system \(nfs4"):
        refuse_network_file_system(tmp_path / "study.db", mounts)
    refuse_network_file_system(tmp_path / "local" / "study.db", mounts)
    refuse_network_file_system(Path("/home/study.db"), mounts)


def test_a_metric_that_is_no_number_comes_back_as_such(sqlite: str) -> None:
    gateway = Gateway.open(sqlite, make_plan(), driver="test")
    trial = next_trial(gateway)
    odd = report(trial, 10, 0.5)
    gateway.report(type(odd)(**{**odd.__dict__, "metrics": {**odd.metrics, "validation/loss": math.nan}}))
    gateway.close()
    metrics = StudyReader(sqlite).reports("study", 0)[0].metrics
    assert metrics["validation/accuracy"] == 0.5
    assert math.isnan(metrics["validation/loss"])


def test_a_plan_survives_json() -> None:
    plan = make_plan(
        space={"warmup": {"low": 0.0, "high": 0.2, "when": {"schedule": ["cosine"]}}, "schedule": ["linear", "cosine"]},
        objective={"metric": ["accuracy", "loss"], "constraints": {"loss": {"max": 1.0}}},
        search={"time": "2h", "enqueue": [{"rank": 4}]},
    )
    assert plan_from_json(plan.to_json()) == plan


@pytest.mark.parametrize("full", [1, 7, 10, 99, 100, 1005, 12345])
def test_clocks_have_ten_evaluations_and_no_two_beside_each_other(full: int) -> None:
    every = default_every(full)
    rungs = study_rungs([0.1, 0.3], full, every)
    evaluations, reached = clock(full, every, rungs)
    assert evaluations[-1] == full
    assert len(evaluations) <= 10
    assert set(reached) == set(rungs) <= set(evaluations)
    assert all(0 < rung < full for rung in rungs)


def test_a_rung_between_evaluations_is_an_evaluation_of_its_own() -> None:
    rungs = study_rungs([0.15], 1000, 100)
    assert rungs == (150,)
    assert clock(1000, 100, rungs)[0][:3] == (100, 150, 200)
    assert clock(150, 100, rungs) == ((100, 150), ())
