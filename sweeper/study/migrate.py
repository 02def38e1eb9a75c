"""Brings our tables up to date: alembic, under its own version table, so that Optuna's migrations and ours never meet.

Does not know what a driver is: `upgrade` may run beside another driver, and changes nothing where nothing is to change.
Cost: one query when up to date, else about half a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from sweeper.errors import BusyError, StudyError

VERSION_TABLE = "sweeper_alembic_version"
HEAD = "0001"
"""The revision that this code needs; a test holds it to the newest file of migrations/versions."""

_ADVISORY_LOCK = 7_305_813
_LOCK_SECONDS = 60


def upgrade(engine: sa.Engine) -> None:
    """Creates or migrates our tables and views.

    Raises StudyError if a newer Sweeper wrote the database, BusyError if another driver does the same for a minute.
    """
    with engine.begin() as connection, _alone(connection):
        found = version(connection)
        if found == HEAD:
            return
        if found is not None and found > HEAD:
            raise StudyError(
                f"the study database has version {found}, but this Sweeper knows versions up to {HEAD}; "
                "update Sweeper (pip install -U sweeper), or name another database with storage"
            )
        _run_alembic(connection)


def version(connection: sa.Connection) -> str | None:
    """The version of our tables in this database; None if there are none."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


@contextmanager
def _alone(connection: sa.Connection) -> Iterator[None]:
    """Keeps other drivers from migrating at the same moment; on SQLite the transaction does."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
    if connection.dialect.name != "mysql":
        yield
        return
    # Names of locks are one set for the whole server.
    name = "CONCAT('sweeper ', MD5(DATABASE()))"
    if not connection.execute(sa.text(f"SELECT GET_LOCK({name}, {_LOCK_SECONDS})")).scalar():
        raise BusyError("another driver has been making the study database's tables for a minute; wait for it and run again")
    try:
        _tell_names_apart(connection)
        yield
    finally:
        connection.execute(sa.text(f"SELECT RELEASE_LOCK({name})"))


def _tell_names_apart(connection: sa.Connection) -> None:
    """Makes Optuna's study names differ by case on MySQL too, where `demo` would else be told to the study `Demo`.

    The one change to Optuna's tables that we make: a stricter comparison, which its own migrations do not touch.
    """
    column = "TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'studies' AND COLUMN_NAME = 'study_name'"
    query = sa.text(f"SELECT COLLATION_NAME, CHARACTER_MAXIMUM_LENGTH FROM information_schema.COLUMNS WHERE {column}")
    found = connection.execute(query).first()
    if found is not None and not found[0].endswith("_bin"):
        kind = f"VARCHAR({found[1]}) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL"
        connection.execute(sa.text(f"ALTER TABLE studies MODIFY study_name {kind}"))


def _run_alembic(connection: sa.Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    # A percent sign in a path would be taken for interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
