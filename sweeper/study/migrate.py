"""Brings our tables up to date: alembic, under its own version table, so that Optuna's migrations and ours never meet.

Does not know what a driver is: `upgrade` may run beside another driver, and changes nothing where nothing is to change.
Cost: one query when up to date, else about half a second.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from sweeper.errors import StudyError
from sweeper.study.alone import alone

VERSION_TABLE = "sweeper_alembic_version"
HEAD = "0001"
"""The revision that this code needs; a test holds it to the newest file of migrations/versions."""


def upgrade(engine: sa.Engine) -> None:
    """Creates or migrates our tables and views.

    Raises StudyError if a newer Sweeper wrote the database, BusyError if another driver does the same for a minute.
    """
    with engine.begin() as connection, alone(connection):
        if connection.dialect.name == "mysql":
            _tell_names_apart(connection)
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
