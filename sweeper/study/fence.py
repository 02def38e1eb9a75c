"""Who may write to a study: one driver at a time, known by its term.

Taking a study raises its term. Every transaction of a driver (Optuna's own as well: the listeners sit on the engine of its
storage) first reads the term and raises FencedError if another driver has taken it since; a driver that was stopped and
wakes up can write nothing. On SQLite every transaction begins IMMEDIATE and the file is in WAL mode; on PostgreSQL the row
of the term is read FOR SHARE (LOCK IN SHARE MODE on MySQL), so that taking it waits for what is in flight: such a read sees the
latest commit at every isolation level. A driver that was stopped inside a transaction keeps that lock until the server ends its
connection, after 20 s: PostgreSQL and MariaDB watch transactions for it, MySQL can only watch idle connections.

A driver is alive if its process is (same host), or if its heartbeat is younger than 30 s (another host).
Does not know what is written. Cost: one indexed read per transaction.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import sqlalchemy as sa
from sqlalchemy import event

from sweeper.errors import BusyError, FencedError
from sweeper.study.tables import FENCE, TERMS, clock_ms, now_ms

STALE_SECONDS = 30.0
"""A driver on another host that has not been heard of for so long is taken for dead."""

BEAT_SECONDS = 5.0

_BUSY_SECONDS = 30.0
_IDLE_SECONDS = 20
_LOCK_SECONDS = 40


@dataclass(frozen=True)
class Holder:
    """The last driver of a study. Times are Unix milliseconds of the database's clock, `beat_age` is in seconds."""

    term: int
    driver: str
    host: str
    machine: str
    pid: int
    pid_started: float
    started_ms: int
    beat_ms: int
    ended_ms: int | None
    beat_age: float

    def is_alive(self, stale: float = STALE_SECONDS) -> bool:
        """Whether it still drives: its process on this host, its heartbeat elsewhere."""
        if self.ended_ms is not None:
            return False
        if self.machine == machine():
            process = _process(self.pid, self.pid_started)
            # A stopped process cannot beat and may stay so for ever; it is fenced off once its heartbeat is old.
            stopped = process is not None and process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
            return process is not None and not (stopped and self.beat_age > stale)
        return self.beat_age <= stale


class Fence:
    """A driver's hold on one study. `take` first, then `guard`; afterwards every transaction on the engine is checked."""

    def __init__(self, engine: sa.Engine, study: str) -> None:
        self._engine = engine
        self._study = study
        self._query = sa.select(FENCE.c.term).where(FENCE.c.study == study)
        if engine.dialect.name != "sqlite":
            self._query = self._query.with_for_update(read=True)
        self._guarding = False
        self._open = True
        self.term = 0

    def take(self, driver: str, *, stale: float = STALE_SECONDS) -> Holder | None:
        """Takes the study and returns whom it was taken from, if anyone. Raises BusyError while a live driver has it."""
        with self._engine.begin() as connection:
            _insert_fence(connection, self._study)
            row = connection.execute(sa.select(FENCE.c.term).where(FENCE.c.study == self._study).with_for_update()).one()
            before = read_holder(connection, self._study, row.term)
            if before is not None and before.is_alive(stale):
                raise BusyError(_busy(self._study, before))
            self.term = row.term + 1
            now = now_ms(connection)
            me = psutil.Process()
            connection.execute(sa.update(FENCE).where(FENCE.c.study == self._study).values(term=self.term))
            connection.execute(
                sa.insert(TERMS).values(
                    study=self._study,
                    term=self.term,
                    driver=driver,
                    host=socket.gethostname(),
                    machine=machine(),
                    pid=me.pid,
                    pid_started=me.create_time(),
                    started_ms=now,
                    beat_ms=now,
                )
            )
        return before

    def guard(self) -> None:
        """From here on every transaction of the engine reads the term first."""
        self._guarding = True
        event.listen(self._engine, "begin", self._check)

    def beat(self) -> None:
        """Notes that the driver lives."""
        with self._engine.begin() as connection:
            connection.execute(sa.update(TERMS).where(self._mine()).values(beat_ms=clock_ms(connection.dialect.name)))

    def release(self) -> None:
        """Gives the study back; whatever is written afterwards is refused."""
        if not (self._open and self._guarding):
            return
        with contextlib.suppress(FencedError), self._engine.begin() as connection:
            now = now_ms(connection)
            connection.execute(sa.update(TERMS).where(self._mine()).values(beat_ms=now, ended_ms=now))
        self._open = False

    def _mine(self) -> sa.ColumnElement[bool]:
        return sa.and_(TERMS.c.study == self._study, TERMS.c.term == self.term)

    def _check(self, connection: sa.Connection) -> None:
        found = connection.execute(self._query).scalar_one() if self._open else None
        if found != self.term:
            connection.connection.rollback()
            if found is None:
                raise FencedError(f"this driver has closed study {self._study!r}; open it again to write")
            raise FencedError(f"another driver has taken over study {self._study!r} (term {found}, ours was {self.term})")


class Heart:
    """Beats in its own thread, so that a driver at long work is not taken for dead."""

    def __init__(self, beat: Callable[[], None], seconds: float = BEAT_SECONDS) -> None:
        self._beat = beat
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper-heartbeat", daemon=True)

    def start(self) -> None:
        """Begins to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Beats no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * self._seconds)

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self._beat()
            except FencedError:
                return
            except Exception:  # a database that is away for a while must not end the heartbeat
                continue


def prepare_engine(engine: sa.Engine) -> None:
    """Gives an engine the transactions that the fence needs; connections opened before are dropped."""
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _connect_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    if engine.dialect.name == "postgresql":
        event.listen(engine, "connect", _connect_postgresql)
    if engine.dialect.name == "mysql":
        event.listen(engine, "connect", _connect_mariadb if getattr(engine.dialect, "is_mariadb", False) else _connect_mysql)
    engine.dispose()


def read_holder(connection: sa.Connection, study: str, term: int | None = None) -> Holder | None:
    """The driver of `term`, or of the latest one; None if nobody has driven the study yet."""
    query = sa.select(TERMS).where(TERMS.c.study == study)
    query = query.where(TERMS.c.term == term) if term is not None else query.order_by(TERMS.c.term.desc()).limit(1)
    row = connection.execute(query).mappings().first()
    if row is None:
        return None
    known = {key: value for key, value in row.items() if key != "study"}
    return Holder(**known, beat_age=max(0.0, (now_ms(connection) - row["beat_ms"]) / 1000))


def machine() -> str:
    """Tells hosts, boots and containers apart: process ids mean something only within one of these."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        parts.append(file.read().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _process(pid: int, started: float) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return None
    return process if same else None


def _busy(study: str, holder: Holder) -> str:
    since = f"process {holder.pid} on {holder.host}, last heard of {holder.beat_age:.0f} s ago"
    if holder.machine == machine():
        return f"study {study!r} is being run by {since}; wait for it, stop it with Ctrl-C there, or give this sweep another name"
    return f"study {study!r} is being run by {since}; wait for it, or try again {STALE_SECONDS:.0f} s after it has died"


def _insert_fence(connection: sa.Connection, study: str) -> None:
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert

        connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'"))
        connection.execute(insert(FENCE).values(study=study, term=0).on_conflict_do_nothing())
    elif connection.dialect.name == "mysql":
        from sqlalchemy.dialects import mysql

        # The update locks the row for writing at once. INSERT IGNORE would share it, and two that share it wait for each other.
        connection.execute(mysql.insert(FENCE).values(study=study, term=0).on_duplicate_key_update(term=FENCE.c.term))
    elif connection.execute(sa.select(FENCE.c.term).where(FENCE.c.study == study)).first() is None:
        connection.execute(sa.insert(FENCE).values(study=study, term=0))


def _connect_sqlite(connection: object, _record: object) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute(f"PRAGMA busy_timeout = {int(_BUSY_SECONDS * 1000)}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _connect_postgresql(connection: object, _record: object) -> None:
    # A driver that was stopped inside a transaction would hold its locks for ever; the server ends it instead.
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE_SECONDS}s'")
    connection.commit()  # type: ignore[attr-defined]
    cursor.close()


def _connect_mariadb(connection: object, _record: object) -> None:
    _set_up_mysql(connection, "idle_transaction_timeout")


def _connect_mysql(connection: object, _record: object) -> None:
    # Ends connections between transactions as well, which the pool then opens again.
    _set_up_mysql(connection, "wait_timeout")


def _set_up_mysql(connection: object, idle: str) -> None:
    locks = f"innodb_lock_wait_timeout = {_LOCK_SECONDS}, lock_wait_timeout = {_LOCK_SECONDS}"
    # Without the strict mode, text that is too long would be cut in silence.
    strict = "sql_mode = CONCAT(@@sql_mode, ',STRICT_TRANS_TABLES')"
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute(f"SET SESSION {idle} = {_IDLE_SECONDS}, {locks}, {strict}")
    connection.commit()  # type: ignore[attr-defined]
    cursor.close()
