"""A depot of folders: on a disk, or wherever fsspec reaches (s3://, gs://, memory://, ...).

On a disk a folder is written aside and renamed, so that a reader sees all of it or nothing. Object stores cannot rename; there a
list of the files is written last, and a folder without it does not exist.
Does not know what it stores. Cost: the bytes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec

from sweeper.errors import ResourceError

_LIST = ".files.json"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class FolderDepot:
    """Implements `records.Depot` below `root`, a folder or an fsspec URL. Names are relative, with forward slashes."""

    def __init__(self, root: Path | str) -> None:
        self._remote: Any = None
        if "://" in str(root) and not str(root).startswith("file://"):
            self._remote, self._root = fsspec.core.url_to_fs(str(root))
        else:
            self._root = str(Path(str(root).removeprefix("file://")).expanduser().resolve())

    def put(self, name: str, files: Mapping[str, bytes]) -> str:
        """Stores `files` as folder `name`, in place of one that is there; whole or not at all.

        Raises ValueError for a bad name, ResourceError where the disk is full or may not be written.
        """
        path = self._path(name)
        for file in files:
            _check(file)
        if self._remote is not None:
            self._put_remote(path, files)
            return name
        aside = f"{path}.{uuid.uuid4().hex[:8]}.aside"
        try:
            self._put_here(path, aside, files)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise ResourceError(
                f"{self._root} takes no more files ({error.strerror}); make room or mend its permissions, "
                "then go on with the same command"
            ) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return name

    def _put_here(self, path: str, aside: str, files: Mapping[str, bytes]) -> None:
        for file, content in files.items():
            target = Path(aside) / file
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(target, content)
        Path(aside).mkdir(parents=True, exist_ok=True)
        old = f"{path}.{uuid.uuid4().hex[:8]}.aside"
        if os.path.isdir(path):
            os.replace(path, old)
        os.replace(aside, path)
        shutil.rmtree(old, ignore_errors=True)

    def get(self, name: str) -> dict[str, bytes]:
        """The files of folder `name`. Raises FileNotFoundError."""
        path = self._path(name)
        if self._remote is not None:
            names = json.loads(self._remote.cat_file(f"{path}/{_LIST}"))
            return {file: self._remote.cat_file(f"{path}/{file}") for file in names}
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"the depot has no folder {name!r}")
        return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}

    def remove(self, name: str) -> None:
        """Removes folder `name`; no error if it is not there."""
        path = self._path(name)
        if self._remote is None:
            shutil.rmtree(path, ignore_errors=True)
        elif self._remote.exists(path):
            self._remote.rm(path, recursive=True)

    def path(self, name: str) -> str:
        """Where folder `name` lies: a path on a disk, else a URL of the file system."""
        path = self._path(name)
        return path if self._remote is None else str(self._remote.unstrip_protocol(path))

    def _put_remote(self, path: str, files: Mapping[str, bytes]) -> None:
        if self._remote.exists(path):
            self._remote.rm(path, recursive=True)
        for file, content in files.items():
            self._remote.pipe_file(f"{path}/{file}", content)
        self._remote.pipe_file(f"{path}/{_LIST}", json.dumps(sorted(files)).encode())

    def _path(self, name: str) -> str:
        _check(name)
        return f"{self._root}/{name}"


def _check(name: str) -> None:
    """Raises ValueError for a name that could lead out of the depot."""
    if not name or name.startswith("/") or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{name!r} is no depot name; use relative names with forward slashes, without . and ..")


def _write(path: Path, content: bytes) -> None:
    """Writes and syncs, so that a renamed folder is never empty after a power cut."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
