"""The databases that a study may live in, and the Python drivers that reach them.

Purpose: a URL is parsed, completed and refused here, so that nobody else knows a driver's name. Optuna's storage decides
which databases are possible at all: SQLite, PostgreSQL, and MySQL with MariaDB, which Optuna knows as `mysql` alone.
Does not open connections. Cost: microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

from sweeper.errors import ResourceError

CONNECT_SECONDS = 10
_SQLITE_SECONDS = 30


@dataclass(frozen=True)
class Driver:
    """A DBAPI driver: what pip calls it, and its argument for how long to wait for a connection (None: it has none)."""

    package: str
    wait: str | None = "connect_timeout"


# The first of each family is taken where a URL names none. pg8000's timeout would cut every later wait for a lock as well.
DRIVERS: dict[str, dict[str, Driver]] = {
    "sqlite": {"pysqlite": Driver("", "timeout")},
    "postgresql": {"psycopg": Driver("sweeper[postgres]"), "psycopg2": Driver("psycopg2-binary"), "pg8000": Driver("pg8000", None)},
    "mysql": {
        "pymysql": Driver("sweeper[mysql]"),
        "mysqldb": Driver("mysqlclient"),
        "mysqlconnector": Driver("mysql-connector-python", "connection_timeout"),
    },
}

_ALSO = {"mariadb": "mysql"}
ALLOWED = (*DRIVERS, *_ALSO)
"""What a URL may begin with."""


def parse(url: str) -> URL:
    """The URL, checked and with its driver. Raises ResourceError if it is none, or names what Optuna or Sweeper cannot use."""
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        raise ResourceError(
            "storage is no database URL; write e.g. sqlite:////home/me/sweeps/study.db, "
            "postgresql+psycopg://user:password@host/name or mysql+pymysql://user:password@host/name"
        ) from None
    family, _, named = parsed.drivername.partition("+")
    backend = _ALSO.get(family, family)
    if backend not in DRIVERS:
        raise ResourceError(f"storage names a {family} database; allowed: {', '.join(ALLOWED)}")
    drivers = DRIVERS[backend]
    if named and named not in drivers:
        raise ResourceError(
            f"storage names the driver {named!r}, which Sweeper does not know; allowed for {family}: {', '.join(drivers)}"
        )
    if backend == "sqlite":
        return parsed
    return parsed.set(drivername=f"{backend}+{named or next(iter(drivers))}")


def package_of(url: URL) -> str:
    """What to give to `pip install` for the driver of a parsed URL."""
    backend, _, named = url.drivername.partition("+")
    return DRIVERS[backend][named].package if named else ""


def engine_options(url: URL) -> dict[str, Any]:
    """Arguments of `create_engine` for a parsed URL, the same for drivers and readers of a study.

    READ COMMITTED is what PostgreSQL does anyway. With MySQL's own level two drivers of different studies would lock the gaps
    between each other's rows.
    """
    backend, _, named = url.drivername.partition("+")
    if backend == "sqlite":
        return {"connect_args": {"timeout": _SQLITE_SECONDS}}
    wait = DRIVERS[backend][named].wait
    arguments: dict[str, object] = {wait: CONNECT_SECONDS} if wait is not None and wait not in url.query else {}
    if backend == "mysql" and "charset" not in url.query:
        arguments["charset"] = "utf8mb4"
    more = {"isolation_level": "READ COMMITTED"} if backend == "mysql" else {}
    return {"connect_args": arguments, **more}
