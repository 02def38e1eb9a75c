"""Our own tables, beside Optuna's in one database. All bear the prefix `swp_`; people read the views of `views.py`.

    swp_sweeps          one row per study: identity, plan (with the masked spec), status
    swp_changes         what of a plan changed between runs, old and new
    swp_fence           the driver term of a study; read in every transaction of a driver
    swp_terms           who drove a study when: process, host, heartbeat
    swp_trials          one row per trial: configuration, clocks, state, results; also the queue (WAITING, held)
    swp_runs            one row per attempt of a trial: worker, seconds, tokens, how it ended
    swp_events          the outbox: what happened, in order
    swp_reports         one row per evaluation of an attempt; its metrics are in swp_metrics
    swp_decisions       why a trial was stopped or kept, with its evidence
    swp_checkpoints, swp_verdicts, swp_reviews
    swp_trackers, swp_tracker_runs   how far each tracker has read the outbox, and its run ids

No foreign keys to Optuna's tables (deleting a study there would then fail in silence). Times are Unix milliseconds: of the
database's clock for drivers and events, of the driver or worker otherwise. A float that is not a number is NULL. On MySQL all
text is utf8mb4 compared byte by byte, so that `Demo` and `demo` are two studies whatever the database's default is (the
migrations see to that).
Knows nothing of what the rows mean. Costs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence, Set
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import BigInteger, Boolean, Column, Float, Integer, String
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

METADATA = sa.MetaData()
_KEY = "key_"  # begins the names of bound primary keys
_NAME = String(200)
_PATH = String(1000)
_KEY_PATH = String(1000).with_variant(String(500), "mysql")  # its keys hold 3072 bytes, four a character
_TEXT = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql")  # a TEXT there ends at 64 KB


class Real(sa.TypeDecorator[float]):
    """A double. MySQL's FLOAT has 24 bits, and no type of its holds infinity: there the largest double stands for it."""

    impl = Float
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> TypeEngine[float]:
        """DOUBLE on MySQL, FLOAT elsewhere."""
        return dialect.type_descriptor(sa.Double() if dialect.name == "mysql" else Float())

    def process_bind_param(self, value: float | None, dialect: sa.Dialect) -> float | None:
        """The number as it is stored."""
        if value is None or dialect.name != "mysql":
            return value
        return max(-sys.float_info.max, min(sys.float_info.max, value))

    def process_result_value(self, value: float | None, dialect: sa.Dialect) -> float | None:
        """The number that was given."""
        if value is None or dialect.name != "mysql" or abs(value) < sys.float_info.max:
            return value
        return float("inf") if value > 0 else float("-inf")


def _study() -> Column[str]:
    return Column("study", _NAME, primary_key=True)


SWEEPS = sa.Table(
    "swp_sweeps",
    METADATA,
    _study(),
    Column("identity", String(128), nullable=False),
    Column("plan", _TEXT, nullable=False),
    Column("status", String(16), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),
)

CHANGES = sa.Table(
    "swp_changes",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("study", _NAME, nullable=False, index=True),
    Column("term", Integer, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    Column("field", _NAME, nullable=False),
    Column("old", _TEXT),
    Column("new", _TEXT),
)

FENCE = sa.Table("swp_fence", METADATA, _study(), Column("term", Integer, nullable=False))

TERMS = sa.Table(
    "swp_terms",
    METADATA,
    _study(),
    Column("term", Integer, primary_key=True, autoincrement=False),
    Column("driver", _NAME, nullable=False),
    Column("host", _NAME, nullable=False),
    Column("machine", String(400), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("pid_started", Real, nullable=False),
    Column("started_ms", BigInteger, nullable=False),
    Column("beat_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),
)

TRIALS = sa.Table(
    "swp_trials",
    METADATA,
    _study(),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("trial_id", Integer),  # Optuna's; NULL until Optuna has the trial
    Column("state", String(16), nullable=False),
    Column("source", String(16), nullable=False),  # default, enqueued, sampler
    Column("params", _TEXT, nullable=False),  # JSON: every searchable key
    Column("drawn", _TEXT, nullable=False),  # JSON: the keys within the space, as Optuna has them
    Column("asked", _TEXT, nullable=False),  # JSON: what the draw depended on
    Column("seed", BigInteger, nullable=False),
    Column("budget", Integer, nullable=False),  # examples
    Column("evaluations", _TEXT, nullable=False),  # JSON
    Column("rungs", _TEXT, nullable=False),  # JSON
    Column("attempt", Integer, nullable=False),
    Column("held_by", _NAME),
    Column("held_until_ms", BigInteger),
    Column("checkpoint", _PATH),
    Column("nominal", Integer, nullable=False),
    Column("examples", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("reason", _TEXT, nullable=False),
    Column("objective", _TEXT),  # JSON: values, one per metric of the objective
    Column("value", Real),  # the first of them
    Column("metrics", _TEXT, nullable=False),  # JSON: of the value's evaluation, else of the last one
    Column("feasible", Boolean),  # within the constraints; NULL until it is COMPLETE
    Column("adapter", _PATH),
    Column("outcomes", _PATH),
    Column("finish_order", Integer),
    Column("created_ms", BigInteger, nullable=False),
    Column("started_ms", BigInteger),
    Column("ended_ms", BigInteger),
)

RUNS = sa.Table(
    "swp_runs",
    METADATA,
    _study(),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("term", Integer, nullable=False),
    Column("worker", _NAME, nullable=False),
    Column("ending", String(16)),
    Column("reason", _TEXT, nullable=False),
    Column("examples", Integer, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("train_seconds", Real, nullable=False),
    Column("evaluate_seconds", Real, nullable=False),
    Column("started_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),
)

EVENTS = sa.Table(
    "swp_events",
    METADATA,
    Column("seq", Integer, primary_key=True),
    Column("study", _NAME, nullable=False),
    Column("key", String(300), nullable=False),
    Column("kind", String(40), nullable=False),
    Column("number", Integer),
    Column("payload", _TEXT, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    Column("done", Boolean, nullable=False),  # always: Optuna's side is written in the same transaction
    sa.UniqueConstraint("study", "key", name="uq_swp_events_key"),
    sa.Index("ix_swp_events_order", "study", "seq"),
    sqlite_autoincrement=True,
)


def _evaluation() -> list[Column[str] | Column[int]]:
    return [
        _study(),
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("attempt", Integer, primary_key=True, autoincrement=False),
        Column("nominal", Integer, primary_key=True, autoincrement=False),
    ]


REPORTS = sa.Table(
    "swp_reports",
    METADATA,
    *_evaluation(),
    Column("kind", String(16), nullable=False),
    Column("examples", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    Column("value", Real),
    Column("outcomes", _PATH),
    Column("checkpoint", _PATH),
    Column("rows_read", Integer, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("train_seconds", Real, nullable=False),
    Column("evaluate_seconds", Real, nullable=False),
    Column("worker", _NAME, nullable=False),
)

METRICS = sa.Table("swp_metrics", METADATA, *_evaluation(), Column("name", _NAME, primary_key=True), Column("value", Real))

DECISIONS = sa.Table(
    "swp_decisions",
    METADATA,
    *_evaluation(),
    Column("action", String(16), nullable=False),
    Column("reason", _TEXT, nullable=False),
    Column("pruner", String(40), nullable=False),
    Column("value", Real),
    Column("cutoff", Real),
    Column("rank", Integer),
    Column("compared", Integer, nullable=False),
    Column("evidence", _TEXT, nullable=False),  # JSON
    Column("time_ms", BigInteger, nullable=False),
)

CHECKPOINTS = sa.Table(
    "swp_checkpoints",
    METADATA,
    _study(),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("name", _KEY_PATH, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("nominal", Integer, nullable=False),
    Column("examples", Integer, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
)

VERDICTS = sa.Table(
    "swp_verdicts",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("study", _NAME, nullable=False, index=True),
    Column("number", Integer),
    Column("kind", String(40), nullable=False),
    Column("payload", _TEXT, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
)

REVIEWS = sa.Table(
    "swp_reviews",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("study", _NAME, nullable=False, index=True),
    Column("number", Integer),
    Column("row_id", String(128), nullable=False),
    Column("reviewer", _NAME, nullable=False),
    Column("verdict", String(40), nullable=False),
    Column("note", _TEXT, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
)

TRACKERS = sa.Table(
    "swp_trackers",
    METADATA,
    _study(),
    Column("tracker", _NAME, primary_key=True),
    Column("seq", Integer, nullable=False),
)

TRACKER_RUNS = sa.Table(
    "swp_tracker_runs",
    METADATA,
    _study(),
    Column("tracker", _NAME, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),  # -1: the sweep's own run
    Column("run", String(500), nullable=False),
)


def clock_ms(dialect: str) -> sa.TextClause:
    """SQL for the database's own clock in Unix milliseconds, so that drivers on several hosts compare one clock."""
    if dialect == "postgresql":
        return sa.text("CAST(extract(epoch from clock_timestamp()) * 1000 AS bigint)")
    if dialect == "mysql":
        # UNIX_TIMESTAMP(NOW()) would go through local time and jump with it.
        return sa.text("TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) DIV 1000")
    return sa.text("CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)")


def now_ms(connection: sa.Connection) -> int:
    """The database's clock, Unix milliseconds."""
    return int(connection.execute(sa.select(clock_ms(connection.dialect.name))).scalar_one())


def insert(connection: sa.Connection, table: sa.Table, values: Mapping[str, object], *timed: str) -> None:
    """Inserts a row; the columns named in `timed` get the database's clock."""
    connection.execute(_insert(table, connection.dialect.name, timed), values)


def insert_all(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, object]], *timed: str) -> None:
    """Inserts rows that all have the same columns, in their order."""
    if rows:
        connection.execute(_insert(table, connection.dialect.name, timed), rows)


def update(connection: sa.Connection, table: sa.Table, values: Mapping[str, object], *timed: str) -> bool:
    """Updates the row with these primary-key values; whether there is one. `timed` as for `insert`."""
    keys = {column.name for column in table.primary_key}
    names = tuple(name for name in values if name not in keys)
    return bool(connection.execute(_update(table, names, connection.dialect.name, timed), _bound(values, keys)).rowcount)


def update_all(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, object]], *timed: str) -> None:
    """Updates rows by their primary keys, each row once, in a statement for each set of columns."""
    keys = {column.name for column in table.primary_key}
    groups: dict[tuple[str, ...], list[dict[str, object]]] = {}
    for values in rows:
        groups.setdefault(tuple(name for name in values if name not in keys), []).append(_bound(values, keys))
    for names, bound in groups.items():
        connection.execute(_update(table, names, connection.dialect.name, timed), bound)


def upsert(connection: sa.Connection, table: sa.Table, values: Mapping[str, object], *timed: str) -> None:
    """Updates the row with these primary-key values, or inserts it."""
    if not update(connection, table, values, *timed):
        insert(connection, table, values, *timed)


def _bound(values: Mapping[str, object], keys: Set[str]) -> dict[str, object]:
    return {f"{_KEY}{name}" if name in keys else name: value for name, value in values.items()}


# Statements are kept: to build one takes longer than to run it.


@cache
def _insert(table: sa.Table, dialect: str, timed: tuple[str, ...]) -> sa.Insert:
    statement = sa.insert(table).inline()
    return statement.values({name: clock_ms(dialect) for name in timed}) if timed else statement


@cache
def _update(table: sa.Table, names: tuple[str, ...], dialect: str, timed: tuple[str, ...]) -> sa.Update:
    where = (column == sa.bindparam(f"{_KEY}{column.name}") for column in table.primary_key)
    values: dict[str, Any] = {name: sa.bindparam(name) for name in names}
    return sa.update(table).where(*where).values({**values, **{name: clock_ms(dialect) for name in timed}})
