"""A node's own copy of what workers read: token rows, the model, a metric's module. Below `SWEEPER_CACHE`, keyed by content.

Purpose: a worker never opens the driver's home, and the workers of a node fetch a folder once between them.
Does not know where the bytes come from. Cost: a folder that is here already costs one system call; else its bytes, in pieces.
What a folder's content is called is read once, and kept with the sizes and times of its files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from sweeper.engine.node import cache_root, kept, locked
from sweeper.errors import ResourceError

PIECE_BYTES = 32 << 20
_SETTLED_SECONDS = 2.0
_WORTH_KEEPING = 16 << 20

Read = Callable[[str, int, int], bytes]
"""File name, offset, count -> at most `count` bytes; b"" at the end."""


@dataclass(frozen=True)
class Manifest:
    """A folder's files (relative names, forward slashes) with their bytes, and a key that two folders share if they are equal."""

    key: str
    files: Mapping[str, int]


def manifest(root: Path, inside: str = ".", skip: Collection[str] = ()) -> Manifest:
    """Names what lies in `root / inside`, a folder or a file, by its content: reads it once (one to three seconds a gigabyte).

    Hidden and compiled files, and those whose suffix is in `skip`, are left out.
    """
    found = _files(root, inside, skip)
    facts = {name: _facts(root / name) for name in found}
    key = _known(root, facts, lambda: _content(root, facts))
    return Manifest(key, {name: size for name, (size, *_) in facts.items()})


def _files(root: Path, inside: str, skip: Collection[str]) -> list[str]:
    start = root / inside
    paths = [start] if start.is_file() else start.rglob("*")
    names = (path.relative_to(root).as_posix() for path in sorted(p for p in paths if p.is_file() and p.suffix not in skip))
    return [name for name in names if not any(part.startswith(".") or part == "__pycache__" for part in name.split("/"))]


def _facts(path: Path) -> tuple[int, int, int, int]:
    """What changes with a file's content: size, and where and when it was written."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _content(root: Path, facts: Mapping[str, tuple[int, ...]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, (size, *_) in facts.items():
        digest.update(f"{name}\0{size}\0".encode())
        with (root / name).open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
    return digest.hexdigest()


def _known(root: Path, facts: Mapping[str, tuple[int, ...]], read: Callable[[], str]) -> str:
    """What `read` gives, kept under the facts; not of files written a moment ago, whose times may not tell another change."""
    newest = max((written for _, *times, _ in facts.values() for written in times), default=0)
    if time.time_ns() - newest < _SETTLED_SECONDS * 1e9 or sum(size for size, *_ in facts.values()) < _WORTH_KEEPING:
        return read()
    name = hashlib.blake2b(json.dumps([str(root.resolve()), facts], sort_keys=True).encode(), digest_size=16).hexdigest()
    key: str = kept(cache_root() / "contents" / f"{name}.json", lambda text: str(json.loads(text)), read, json.dumps)
    return key


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
