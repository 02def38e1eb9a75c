"""Hidden states of rows on a node's disk: written once, read by every engine of the node, memory-mapped.

    states.bin   float32 [tokens, width] of one row after another
    index.bin    a record a row: digest of the row (16 bytes), place in states.bin, tokens, CRC of the states
    lock         held while rows are added
    users        held (shared) by every store that is open, so that nobody removes a folder in use

A row is known by its content, so trials, epochs, sides of a split and studies share it. A row is there once its record is; the
record is written after the states, and the first reading in a process checks the CRC: whatever a kill or a power cut left half
done is a row that is not there. Files only grow; past `limit` bytes, or where the disk takes no more, nothing is added.
Does not know torch, models or what the states mean. Cost: about 2 microseconds a row and a copy of its bytes.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import shutil
import struct
import weakref
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sweeper.errors import ResourceError

States = npt.NDArray[np.float32]

_RECORD = struct.Struct("<16sQII")
_ITEM = 4  # bytes of a float32

log = logging.getLogger(__name__)


@dataclass
class _Place:
    offset: int
    tokens: int
    crc: int
    sound: bool = False


class StateStore:
    """The store in `folder`, made if it is not there; `width` floats a token, at most `limit` bytes in all.

    Several processes may have the same folder open. Raises ResourceError if it cannot be written.
    """

    def __init__(self, folder: Path, width: int, limit: int) -> None:
        self._width, self._limit = width, limit
        self._places: dict[bytes, _Place] = {}
        self._seen = self._end = 0
        self._map: mmap.mmap | None = None
        self.full = False
        with ExitStack() as files:
            self._lock, self._index, self._states = _open_all(folder, files)
            self._close = weakref.finalize(self, files.pop_all().close)
        self._refresh()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: bytes) -> States | None:
        """The states [tokens, width] of the row `key`, a read-only view; None if they are not here."""
        if key not in self._places:
            self._refresh()
        place = self._places.get(key)
        if place is None:
            return None
        count = place.tokens * self._width
        end = place.offset + count * _ITEM
        if self._map is None or end > len(self._map):
            self._remap()
        if not place.sound:
            whole = self._map is not None and end <= len(self._map)
            place.sound = whole and zlib.crc32(memoryview(self._map)[place.offset : end]) == place.crc  # type: ignore[arg-type]
            if not place.sound:
                del self._places[key]
                return None
        assert self._map is not None
        return np.frombuffer(self._map, np.float32, count, place.offset).reshape(place.tokens, self._width)

    def put(self, rows: Iterable[tuple[bytes, States]]) -> None:
        """Adds rows (states [tokens, width], C-contiguous) that are not here yet, as far as there is room."""
        if self.full:
            return
        try:
            with self._alone():
                self._refresh()
                for key, states in rows:
                    if key not in self._places and not self._add(key, states):
                        break
        except OSError as error:
            self.full = True
            log.warning("hidden states are no longer cached: %s", error.strerror)

    def close(self) -> None:
        """Lets go of the files; they stay on the disk. A store that nobody holds any more does so by itself."""
        self._map = None
        self._close()

    def _add(self, key: bytes, states: States) -> bool:
        raw = np.ascontiguousarray(states).reshape(-1).view(np.uint8).data
        if self._end + len(raw) > self._limit:
            self.full = True
            log.info("hidden states of %d rows take all of the %d bytes they may have; others are computed", len(self), self._limit)
            return False
        place = _Place(self._end, states.shape[0], zlib.crc32(raw), sound=True)
        _write(self._states, raw, place.offset)
        _write(self._index, memoryview(_RECORD.pack(key, place.offset, place.tokens, place.crc)), self._seen)
        self._seen += _RECORD.size
        self._end += len(raw)
        self._places[key] = place
        return True

    def _refresh(self) -> None:
        """Reads the records that others have added; a record that was cut short is overwritten by the next one."""
        new = (os.fstat(self._index).st_size - self._seen) // _RECORD.size * _RECORD.size
        if new <= 0:
            return
        raw = os.pread(self._index, new, self._seen)
        for key, offset, tokens, crc in _RECORD.iter_unpack(raw[: len(raw) // _RECORD.size * _RECORD.size]):
            # A later record of the same row stands for one whose states were found broken.
            self._places[key] = _Place(offset, tokens, crc)
            self._end = max(self._end, offset + tokens * self._width * _ITEM)
            self._seen += _RECORD.size

    def _remap(self) -> None:
        size = os.fstat(self._states).st_size
        self._map = mmap.mmap(self._states, size, prot=mmap.PROT_READ) if size else None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)


def make_room(root: Path, keep: str, share: float = 0.2) -> int:
    """Bytes that the folder `keep` below `root` may take: `share` of what is free on that disk or cached below `root`.

    Other folders count; of those that nobody uses the oldest are removed until all of them take at most half.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    ages: dict[Path, float] = {}
    for path in root.iterdir():
        with suppress(FileNotFoundError):  # another engine makes room too
            ages[path] = path.stat().st_mtime
    others = sorted((path for path in ages if path.name != keep and path.is_dir()), key=ages.__getitem__)
    sizes = {path: _bytes(path) for path in others}
    own = _bytes(root / keep)
    limit = int(share * (shutil.disk_usage(root).free + sum(sizes.values()) + own))
    for path in others:
        if sum(sizes.values()) > limit // 2 and _remove_unused(path):
            del sizes[path]
    return max(0, limit - sum(sizes.values()))


def _remove_unused(folder: Path) -> bool:
    try:
        users = _open(folder / "users")
    except OSError:
        return False
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()
    finally:
        os.close(users)


def _bytes(folder: Path) -> int:
    total = 0
    for name in ("states.bin", "index.bin"):
        with suppress(FileNotFoundError):
            total += (folder / name).stat().st_size
    return total


def _open_all(folder: Path, files: ExitStack) -> tuple[int, int, int]:
    """Descriptors of lock, index and states, closed by `files`, which also says that the folder is in use. Raises ResourceError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        opened = []
        for name in ("users", "lock", "index.bin", "states.bin"):
            opened.append(_open(folder / name))
            files.callback(os.close, opened[-1])
        fcntl.flock(opened[0], fcntl.LOCK_SH)
        os.utime(folder)
    except OSError as error:
        raise ResourceError(f"the cache folder {folder} cannot be written ({error.strerror}); set SWEEPER_CACHE") from error
    return opened[1], opened[2], opened[3]


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _write(file: int, content: memoryview, offset: int) -> None:
    """All of `content` at `offset`; a write may take less than it was given."""
    while len(content):
        done = os.pwrite(file, content, offset)
        content, offset = content[done:], offset + done
