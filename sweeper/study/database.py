"""Reaching a study database: what a URL may be, and one sentence for each way it can fail.

Purpose: `connect` for a driver, `connect_to_read` for everybody else. Passwords never appear in a message.
Does not know tables, nor one Python driver from another (`drivers.py`). Cost: one connection.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, SQLAlchemyError

from sweeper.errors import ResourceError
from sweeper.spec.mask import mask
from sweeper.study.alone import alone
from sweeper.study.drivers import engine_options, package_of
from sweeper.study.drivers import parse as parse

if TYPE_CHECKING:
    import optuna

NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "ncpfs", "afs", "9p", "lustre", "gpfs", "beegfs", "ceph", "glusterfs"}
    | {"fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.rclone", "fuse.cephfs", "fuse.juicefs"}
)


def masked(url: URL) -> str:
    """The URL without its password, nor any that stands among its parameters."""
    return str(mask(url.render_as_string(hide_password=True)))


def sqlite_path(url: URL) -> Path | None:
    """The file of an SQLite URL; None for other databases. Raises ResourceError for a database in memory."""
    if url.get_backend_name() != "sqlite":
        return None
    if url.database in (None, "", ":memory:"):
        raise ResourceError("storage is an SQLite database in memory, which nothing else could read; name a file")
    return Path(str(url.database)).absolute()


def refuse_network_file_system(path: Path, mounts: str | None = None) -> None:
    """Raises ResourceError if an SQLite file would lie on a network file system, where its locks do not hold.

    `mounts` is the text of /proc/mounts, read here unless given.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
    folder = os.path.realpath(path.parent)
    best, kind = "", ""
    for line in mounts.splitlines():
        _device, point, found, *_ = [*line.split(), "", "", ""]
        point = point.replace("\\040", " ")
        inside = folder == point or folder.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, found
    if kind in NETWORK_FILE_SYSTEMS:
        raise ResourceError(
            f"{path} lies on a network file system ({kind} at {best}), where SQLite's locks do not hold; "
            "put the study database on a local disk, or set storage to a PostgreSQL or MySQL URL"
        )


def connect(url: URL) -> optuna.storages.RDBStorage:
    """Optuna's storage on this database, its tables created; `engine` is the one that everybody uses. Raises ResourceError."""
    path = sqlite_path(url)
    if path is not None:
        refuse_network_file_system(path)
    with reached(url):
        if path is None:
            with _engine(url).begin() as connection, alone(connection):
                return _storage(url, pool_pre_ping=True)
        for attempt in range(3):
            try:
                return _storage(url)
            except DBAPIError as error:
                # Two drivers that create the tables at the same moment: the second finds them at its next try.
                if attempt == 2 or ("already exists" not in str(error) and "UNIQUE constraint" not in str(error)):
                    raise
    raise AssertionError("unreachable")


def connect_to_read(url: URL) -> sa.Engine:
    """An engine for reading. Never creates a file; a copy in a folder that cannot be written is read as it is."""
    path = sqlite_path(url)
    if path is None:
        return _engine(url)
    if not path.is_file():
        raise ResourceError(f"there is no study database {path}; start a sweep with `sweeper run`, or name another one")
    if not os.access(path, os.R_OK):
        raise ResourceError(f"the study database {path} cannot be read; mend its permissions")
    if os.access(path.parent, os.W_OK) and os.access(path, os.W_OK):
        return _engine(url)
    # Where neither the file nor its neighbours can be written, no driver can be at work: read it as it is.
    return sa.create_engine(f"sqlite:///file:{path}?immutable=1&uri=true")


@contextmanager
def reached(url: URL) -> Iterator[None]:
    """Turns a database's errors into one ResourceError that says which database, what happened and what to do."""
    try:
        yield
    except (ImportError, NoSuchModuleError) as error:
        raise ResourceError(f"the driver for {masked(url)} is not installed ({error}); pip install '{package_of(url)}'") from None
    except _optuna_errors() as error:
        raise ResourceError(_sentence(url, error.__cause__ or error)) from error
    except SQLAlchemyError as error:
        raise ResourceError(_sentence(url, error)) from error


def _storage(url: URL, **options: object) -> optuna.storages.RDBStorage:
    import optuna

    return optuna.storages.RDBStorage(url.render_as_string(hide_password=False), engine_kwargs={**engine_options(url), **options})


def _engine(url: URL) -> sa.Engine:
    with reached(url):
        # Without a pool: a reader that is forgotten holds no connection.
        return sa.create_engine(url, poolclass=sa.NullPool, **engine_options(url))


def _optuna_errors() -> tuple[type[Exception], ...]:
    """Optuna's wrapper of database errors; without importing Optuna, which readers can do without."""
    optuna = sys.modules.get("optuna")
    return (optuna.exceptions.StorageInternalError,) if optuna is not None else ()


def _sentence(url: URL, error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    text = " ".join(str(cause).split()) or type(cause).__name__
    if url.password:
        text = text.replace(str(url.password), "***")
    if "database is locked" in text:
        return f"the study database {masked(url)} is locked by another process, perhaps a stopped one; end it and try again"
    if "disk is full" in text or "No space left" in text:
        return f"no disk space left for the study database {masked(url)} ({text}); make room and run the same command again"
    return f"the study database {masked(url)} is out of reach ({text}); check the URL and that it is up, then run again"
