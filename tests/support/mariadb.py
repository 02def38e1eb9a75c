"""A MariaDB server of the tests' own: in a folder of its own, on a Unix socket, gone afterwards.

Needs Debian's mariadb-server-core, which brings the server but starts none. The server's defaults are kept where they are
harsh: text is latin1 and compared without case, and a transaction reads what was there when it began.
Does not know what is tested. Cost: about a second.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

# The tests kill drivers, never the server: waiting for the disk would test nothing.
_OPTIONS = [
    "--no-defaults",
    "--skip-networking",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-flush-method=nosync",
    "--innodb-log-file-size=8M",
    "--innodb-buffer-pool-size=32M",
]
_USER = "CREATE USER me@localhost IDENTIFIED BY 'hunter2';\nGRANT ALL ON *.* TO me@localhost;\n"


@contextmanager
def mariadb_server() -> Iterator[str]:
    """URL of the server, without a database; its user may do everything."""
    # Not below pytest's own folder: as root the server runs under another user, who may not look in there.
    folder = Path(tempfile.mkdtemp(prefix="sweeper-maria-"))
    data, socket = folder / "data", folder / "socket"
    data.mkdir()
    command = [_program(), *_OPTIONS, f"--datadir={data}"]
    if os.getuid() == 0:
        command.append("--user=nobody")
        shutil.chown(folder, "nobody")
        shutil.chown(data, "nobody")
    subprocess.run([*command, "--bootstrap"], input=_system_tables() + _USER, text=True, capture_output=True, check=True)
    with open(folder / "log", "w") as log:
        server = subprocess.Popen([*command, f"--socket={socket}"], stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for(socket, server, folder / "log")
        yield f"mysql+pymysql://me:hunter2@localhost/?unix_socket={socket}"
    finally:
        server.kill()
        server.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def new_database(server: str, name: str) -> str:
    """URL of a new, empty database on the server at `server`."""
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    return sa.make_url(server).set(database=name).render_as_string(hide_password=False)


def _program() -> str:
    found = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    assert found, "these tests need the MariaDB server; `bash scripts/system-deps` installs it (Debian's mariadb-server-core)"
    return found


def _system_tables() -> str:
    folder = next(path for path in (Path("/usr/share/mariadb"), Path("/usr/share/mysql")) if path.is_dir())
    scripts = [next(folder.glob(f"*_{name}.sql")).read_text() for name in ("system_tables", "performance_tables")]
    return "CREATE DATABASE mysql;\nUSE mysql;\n" + "".join(scripts) + "FLUSH PRIVILEGES;\n"


def _wait_for(socket: Path, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 60
    while not socket.exists():
        assert server.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < until, log.read_text()[-2000:]
        time.sleep(0.02)
