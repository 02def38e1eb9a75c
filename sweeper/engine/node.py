"""A node's own folder, where what is fetched or measured once lies for all engines there.

Knows nothing of what lies in it. Costs a system call or two.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_root() -> Path:
    """`SWEEPER_CACHE`, by default ~/.cache/sweeper."""
    return Path(os.environ.get("SWEEPER_CACHE") or "~/.cache/sweeper").expanduser()


def keep(path: Path, text: str) -> None:
    """Writes a small file whole, so that a reader sees all of it or none; of two writers the last one's stays.

    What is kept here can be made again, so a folder that cannot be written is no error.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".aside", delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError:
        return


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process of the node at a time; one that is killed lets the next one in. Raises OSError if `path` is not writable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
