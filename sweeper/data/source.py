"""Reading rows as they are: csv, tsv, jsonl, parquet and hub data sets, in batches.

A batch is a mapping of column name to a list of Python values, all of one length. Text formats are read line by line, so that
every complaint names its line. csv cells are always text; nothing is cleaned, trimmed or guessed.
Does not know: splits, tasks, templates. Cost: 2-4 µs a cell, one batch in memory.
"""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from sweeper.data.hub import HubPart
from sweeper.errors import DataError
from sweeper.spec.models import DataSpec

Batch = Mapping[str, list[object]]
BATCH_ROWS = 2048
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
LARGEST_CELL = 64 * 2**20
"""Characters of one csv cell; an unclosed quote would otherwise read the rest of the file into one."""


class Part(Protocol):
    """One file or hub data set. `role` is train, validation or test where the file decides over the side, else empty."""

    @property
    def role(self) -> str: ...

    def stamp(self) -> tuple[list[object], float]:
        """(what changes when the part changes, without reading it; Unix seconds of its last change)."""
        ...

    def batches(self) -> Iterator[Batch]:
        """The rows in their own order. Raises DataError, with the line where there are lines."""
        ...


@dataclass(frozen=True)
class FilePart:
    """One local file."""

    path: Path
    role: str = ""

    def stamp(self) -> tuple[list[object], float]:
        """Path, size, time of change and inode."""
        stat = self.path.stat()
        return [str(self.path.absolute()), self.role, stat.st_size, stat.st_mtime_ns, stat.st_ino], stat.st_mtime

    def batches(self) -> Iterator[Batch]:
        """The rows of the file."""
        try:
            yield from _READERS[self.path.suffix.lower()](self.path)
        except PermissionError:
            raise DataError(f"{self.path} may not be read; give yourself read permission for it") from None


@dataclass(frozen=True)
class Source:
    """All parts of a data set, in reading order."""

    name: str
    parts: tuple[Part, ...]

    def stamp(self) -> tuple[list[object], float]:
        """The stamps of all parts, and the time of the latest change."""
        stamps = [part.stamp() for part in self.parts]
        return [key for key, _ in stamps], max(changed for _, changed in stamps)


def open_source(data: DataSpec) -> Source:
    """Finds the files of a spec; reads nothing yet. Raises DataError for a missing file or an unknown kind of file."""
    if data.hub is not None:
        if data.split.by == "files":
            raise DataError("split by files needs a local data.path beside validation_path; a hub data set can be split by hash")
        hub = data.hub
        name = f"{hub.name}/{hub.config}" if hub.config else hub.name
        return Source(f"hub:{name}:{hub.split}", (HubPart(hub.name, hub.config, hub.split, hub.revision),))
    assert data.path is not None
    if data.split.by != "files":
        return Source(data.path, tuple(FilePart(path) for path in find_files(data.path, "data.path")))
    roles = {"train": data.path, "validation": data.split.validation_path, "test": data.split.test_path}
    parts = [
        FilePart(path, role)
        for role, pattern in roles.items()
        if pattern is not None
        for path in find_files(pattern, "data.path" if role == "train" else f"data.split.{role}_path")
    ]
    return Source(data.path, tuple(parts))


def find_files(pattern: str, where: str) -> list[Path]:
    """The files that a path or glob names, sorted. Raises DataError if there are none, or one is of an unknown kind."""
    plain = Path(pattern).expanduser()
    if plain.is_dir():
        raise DataError(f"{where} is the folder {pattern}; name a file in it, or all of them as {Path(pattern) / '*.parquet'}")
    paths = (
        [plain]
        if plain.exists()
        else [path for name in sorted(glob.glob(str(plain), recursive=True)) if (path := Path(name)).is_file()]
    )
    if not paths:
        raise DataError(f"{where} is {pattern}, but there is no such file (looked in {Path.cwd()}); mend the path")
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{path} ends in {path.suffix or 'nothing'!r}, but must end in one of {', '.join(SUFFIXES)}; convert or rename it"
            )
    return paths


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file, their ends kept. Raises DataError for bytes that are not UTF-8."""
    offset = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise DataError(f"{path} is UTF-16, but must be UTF-8; save it again as UTF-8")
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            try:
                line = raw.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path} is not valid UTF-8 at line {number} (byte 0x{raw[error.start]:02x} at offset {offset + error.start}); "
                    "save the file again as UTF-8"
                ) from None
            offset += len(raw)
            yield line


def _delimiter(path: Path, header: str) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    others = [mark for mark in ";\t" if mark in header]
    return others[0] if others and "," not in header else ","


def _header(path: Path, names: list[str]) -> list[str]:
    names = [name.strip() or f"column_{number}" for number, name in enumerate(names, 1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has two columns named {twice!r}; rename one of them")
    return names


def _read_csv(path: Path) -> Iterator[Batch]:
    header = next(_lines(path), None)
    if header is None:
        raise DataError(f"{path} is empty; it must hold a header line and rows")
    previous = csv.field_size_limit(LARGEST_CELL)
    reader = csv.reader(_lines(path), delimiter=_delimiter(path, header), strict=True)
    try:
        names = _header(path, next(reader))
        rows: list[list[str]] = []
        for row in reader:
            if len(row) != len(names):
                if not row:
                    continue
                raise DataError(
                    f"{path} line {reader.line_num} has {len(row)} cells, but the header has {len(names)}; "
                    "put cells that hold the delimiter or line ends in double quotes"
                )
            rows.append(row)
            if len(rows) == BATCH_ROWS:
                yield _transposed(names, rows)
                rows = []
        if rows:
            yield _transposed(names, rows)
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num} is no valid csv ({error}); look for an unclosed double quote") from None
    finally:
        csv.field_size_limit(previous)


def _transposed(names: list[str], rows: list[list[str]]) -> Batch:
    return {name: list(cells) for name, cells in zip(names, zip(*rows, strict=True), strict=True)}


def _read_jsonl(path: Path) -> Iterator[Batch]:
    rows = _json_rows(path)
    while batch := list(islice(rows, BATCH_ROWS)):
        names = dict.fromkeys(name for row in batch for name in row)
        yield {name: [row.get(name) for row in batch] for name in names}


def _json_rows(path: Path) -> Iterator[dict[str, object]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path} line {number} is no valid JSON ({error}); write one object a line") from None
        except RecursionError:
            raise DataError(f"{path} line {number} nests too deep; write one flat object a line") from None
        if not isinstance(row, dict) or not row:
            raise DataError(f"{path} line {number} is {line.strip()[:40]!r}, but must be a JSON object with the row's columns")
        yield row


def _read_parquet(path: Path) -> Iterator[Batch]:
    try:
        with pq.ParquetFile(path) as file:
            _header(path, list(file.schema_arrow.names))
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                yield {name: column.to_pylist() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    except UnicodeDecodeError as error:
        raise DataError(f"{path} holds text that is not valid UTF-8 ({error.reason}); write it again as UTF-8") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is no readable parquet file ({_first_line(error)}); write it again") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


_READERS = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".parquet": _read_parquet}
