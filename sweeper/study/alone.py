"""One driver at a time makes tables: a lock that the server keeps and drops with its connection.

Needed because two drivers that make the same tables at once trip over each other, on MySQL table by table, since it commits each
by itself. On SQLite the write lock of a transaction does it. Does not know what is made. Cost: a query.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from sweeper.errors import BusyError

_NUMBER = 7_305_813  # of PostgreSQL's advisory lock
_NAME = "CONCAT('sweeper ', MD5(DATABASE()))"  # MySQL's names of locks are one set for the whole server
_SECONDS = 60


@contextmanager
def alone(connection: sa.Connection) -> Iterator[None]:
    """Holds the lock on `connection`'s database. Raises BusyError on MySQL if another driver holds it for a minute."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_NUMBER})"))
    if connection.dialect.name != "mysql":
        yield
        return
    if not connection.execute(sa.text(f"SELECT GET_LOCK({_NAME}, {_SECONDS})")).scalar():
        raise BusyError("another driver has been making the study database's tables for a minute; wait for it and run again")
    try:
        yield
    finally:
        connection.execute(sa.text(f"SELECT RELEASE_LOCK({_NAME})"))
