"""A node's own copy of what workers read: token rows, the model, a metric's module. Below `SWEEPER_CACHE`, keyed by content.

Purpose: a worker never opens the driver's home, and the workers of a node fetch a folder once between them.
Does not know where the bytes come from. Cost: a folder that is here already costs one system call; else its bytes, in pieces.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from sweeper.engine.node import cache_root, locked
from sweeper.errors import ResourceError

PIECE_BYTES = 32 << 20

Read = Callable[[str, int, int], bytes]
"""File name, offset, count -> at most `count` bytes; b"" at the end."""


@dataclass(frozen=True)
class Manifest:
    """A folder's files (relative names, forward slashes) with their bytes, and a key that two folders share if they are equal."""

    key: str
    files: Mapping[str, int]


def manifest(root: Path, inside: str = ".", skip: Collection[str] = ()) -> Manifest:
    """Reads what lies in `root / inside`, a folder or a file, once, to name it by its content (a gigabyte takes about a second).

    Hidden and compiled files, and those whose suffix is in `skip`, are left out.
    """
    digest = hashlib.blake2b(digest_size=16)
    files: dict[str, int] = {}
    start = root / inside
    paths = [start] if start.is_file() else start.rglob("*")
    for path in sorted(p for p in paths if p.is_file() and p.suffix not in skip):
        name = path.relative_to(root).as_posix()
        if any(part.startswith(".") or part == "__pycache__" for part in name.split("/")):
            continue
        files[name] = path.stat().st_size
        digest.update(f"{name}\0{files[name]}\0".encode())
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
    return Manifest(digest.hexdigest(), files)


def cached(kind: str, what: Manifest, read: Read) -> Path:
    """The folder on this node, fetched through `read` if it is not here: written aside, then renamed, by one worker at a time.

    Raises ResourceError if there is no room for it.
    """
    folder = cache_root() / kind / what.key
    if folder.is_dir():
        return folder
    try:
        with locked(folder.with_suffix(".lock")):
            if not folder.is_dir():
                aside = folder.with_suffix(".aside")
                shutil.rmtree(aside, ignore_errors=True)  # of a worker that was killed
                aside.mkdir()
                for name, size in what.files.items():
                    _fetch(aside / name, name, size, read)
                aside.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        total = sum(what.files.values())
        raise ResourceError(
            f"a worker cannot keep {total / 1e6:.0f} MB below {cache_root()} ({error.strerror}); "
            "make room there, or set SWEEPER_CACHE on its node to another folder"
        ) from error
    return folder


def derived(kind: str, folder: Path, make: Callable[[Path], None]) -> Path:
    """What `make` writes from a cached folder, kept beside it under its key; `folder` itself where there is no room for it."""
    made = cache_root() / kind / folder.name
    if made.is_dir():
        return made
    with locked(made.with_suffix(".lock")):
        if made.is_dir():
            return made
        aside = made.with_suffix(".aside")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            make(aside)
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)
            return folder
        aside.rename(made)
    return made


def _fetch(path: Path, name: str, size: int, read: Read) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        while file.tell() < size:
            piece = read(name, file.tell(), PIECE_BYTES)
            if not piece:
                raise RuntimeError(f"{name} became shorter while it was read")
            file.write(piece)
