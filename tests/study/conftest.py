"""Databases for the study's tests: an SQLite file, and real servers, PostgreSQL and MariaDB, started once (the conftest above)."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.support.mariadb import new_database

_COUNT = itertools.count()


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database of each kind."""
    return _empty(request, tmp_path)


@pytest.fixture(params=["sqlite", "postgresql"])
def two_databases(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database of two kinds, for what no third would do otherwise."""
    return _empty(request, tmp_path)


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    """URL of an empty SQLite file."""
    return f"sqlite:///{tmp_path / 'study.db'}"


def _empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name = f"study_{next(_COUNT)}"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    if request.param == "mariadb":
        return new_database(request.getfixturevalue("mariadb"), name)
    server: str = request.getfixturevalue("postgres")
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return sa.make_url(server).set(database=name).render_as_string(hide_password=False)
