"""Brings our tables up to date: alembic, under its own version table, so that Optuna's migrations and ours never meet.

Does not know what a driver is: `upgrade` may run beside another driver, and changes nothing where nothing is to change.
Cost: one query when up to date, else about half a second.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from sweeper.errors import StudyError

VERSION_TABLE = "sweeper_alembic_version"
HEAD = "0001"
"""The revision that this code needs; a test holds it to the newest file of migrations/versions."""

_ADVISORY_LOCK = 7_305_813


def upgrade(engine: sa.Engine) -> None:
    """Creates or migrates our tables and views. Raises StudyError if a newer Sweeper wrote the database."""
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
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


def _run_alembic(connection: sa.Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    # A percent sign in a path would be taken for interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
