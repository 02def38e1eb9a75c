"""A node: the cores that this process may use there, and its folder for what is fetched or measured once for all engines.

Knows nothing of what lies in the folder. Costs a system call or two.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from sweeper.engine.groups import group_folders

T = TypeVar("T")


def cores() -> int:
    """Cores that this process may use: of those it is bound to, as many as its control groups give time for; at least 1."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *_quotas()]))


def _quotas() -> Iterator[int]:
    for version, folder in group_folders("cpu"):
        try:
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = (folder / "cpu.cfs_quota_us").read_text(), (folder / "cpu.cfs_period_us").read_text()
            if int(quota) > 0:
                yield int(quota) // int(period)
        except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
            continue


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


def kept(path: Path, read: Callable[[str], T], make: Callable[[], T], write: Callable[[T], str]) -> T:
    """What was made once on this node and lies in `path`; made now where it is not there, or `read` raises ValueError or TypeError.

    Of engines that start together one makes it, and the others wait for what it found.
    """
    wrong = (OSError, ValueError, TypeError)
    with suppress(*wrong):
        return read(path.read_text())
    with ExitStack() as held:
        with suppress(OSError):
            held.enter_context(locked(path.with_suffix(".lock")))
        with suppress(*wrong):
            return read(path.read_text())
        made = make()
        keep(path, write(made))
        return made


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process of the node at a time; one that is killed lets the next one in. Raises OSError if `path` is not writable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
