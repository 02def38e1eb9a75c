"""The first reading of a source: what is in it, and which side each row falls on.

Keeps 8-byte hashes and keys a row, never the rows. Its result names the content (whatever the order of rows and files), so the
second reading (`store.py`) knows where each row belongs.
Does not know: templates, tokenizers, tasks. Cost: reading, and about 6 µs a row.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sweeper.data import split as sides_of
from sweeper.data.fingerprint import ROW, canonical_rows, fingerprint, hash64
from sweeper.data.source import Batch, Part, Source
from sweeper.errors import DataError, nearest
from sweeper.spec.models import SplitSpec

Progress = Callable[[str, int, int | None], None]
"""Called with (stage, rows done, rows in all or None if not known yet)."""


@dataclass(frozen=True)
class Scan:
    """What one reading told. Arrays are in source order."""

    hashes: npt.NDArray[np.uint64]  # [rows] of the content
    occurrences: npt.NDArray[np.int64]  # [rows] how often that content came before
    sides: npt.NDArray[np.uint8]  # [rows] index into split.SIDES
    columns: dict[str, str]  # name -> bool, int, float or text
    content: str  # fingerprint of all rows, whatever their order
    characters: int  # size of the rows, about
    across: int  # rows whose exact content stands on another side as well (by column, time or files)

    @property
    def duplicates(self) -> int:
        """Rows whose content came before."""
        return int((self.occurrences > 0).sum())


def scan(source: Source, split: SplitSpec, progress: Progress | None = None) -> Scan:
    """Reads a source once. Raises DataError for no rows, a missing split column, or a value there that cannot be used."""
    hashes = array("Q")
    keys: array[Any] = array("d" if split.by == "time" else "B" if split.by in ("column", "files") else "Q")
    kinds: dict[str, set[str]] = {}
    time_kinds: set[str] = set()
    characters = 0
    for part in source.parts:
        before = len(hashes)
        for batch in part.batches():
            for name, values in batch.items():
                kinds.setdefault(name, set()).update(_kind(value) for value in values)
            rows = _canonical(batch, part, len(hashes) + 1)
            characters += sum(map(len, rows))
            new = [hash64(row, ROW) for row in rows]
            if split.by == "hash":
                keys.extend(sides_of.hash_keys(new))
            elif split.by == "files":
                keys.extend([sides_of.SIDES.index(part.role)] * len(new))
            else:
                column = _split_column(batch, split, len(hashes) + 1)
                if split.by == "group":
                    keys.extend(sides_of.group_keys(column, new))
                elif split.by == "column":
                    keys.extend(sides_of.column_sides(column, split, len(hashes) + 1))
                else:
                    found, times = sides_of.moments(column, str(split.column), len(hashes) + 1)
                    time_kinds |= found
                    keys.extend(times)
            hashes.extend(new)
            if progress is not None:
                progress("reading", len(hashes), None)
        if len(hashes) == before:
            raise DataError(f"{getattr(part, 'path', source.name)} holds no rows; it needs a header or columns, and rows")
    if len(time_kinds) > 1:
        raise DataError(f"the time column {split.column!r} mixes numbers and dates; write all of its rows in one way")
    return _finished(np.array(hashes, np.uint64), np.array(keys), kinds, characters, split)


def _finished(
    hashes: npt.NDArray[np.uint64], keys: npt.NDArray[np.generic], kinds: dict[str, set[str]], characters: int, split: SplitSpec
) -> Scan:
    if split.by == "time":
        sides = sides_of.time_sides(keys.astype(np.float64), split.validation, split.test)
    elif split.by in ("column", "files"):
        sides = keys.astype(np.uint8)
    else:
        sides = sides_of.threshold(keys.astype(np.uint64), split.validation, split.test)
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(np.append(first, len(ordered)))
    occurrences = np.empty(len(hashes), np.int64)
    occurrences[order] = np.arange(len(hashes)) - np.repeat(first, counts)
    # A content stands on two sides where the side of its first occurrence is not the side of a later one.
    across = int((sides[order] != np.repeat(sides[order][first], counts)).sum())
    owned = [np.sort(hashes[sides == side]).tobytes() for side in range(3)] if split.by == "files" else [ordered.tobytes()]
    return Scan(
        hashes=hashes,
        occurrences=occurrences,
        sides=sides,
        columns={name: _column_kind(found) for name, found in kinds.items()},
        content=fingerprint(sorted(kinds), *owned),
        characters=characters,
        across=across,
    )


def _canonical(batch: Batch, part: Part, first_row: int) -> list[bytes]:
    try:
        return canonical_rows(batch)
    except UnicodeEncodeError:
        rows = f"{first_row} to {first_row + len(next(iter(batch.values()))) - 1}"
        name = getattr(part, "path", "the data set")
        raise DataError(
            f"{name} holds half of a surrogate pair (such as \\ud800) in one of the rows {rows}, which is no text; mend that row"
        ) from None


def _split_column(batch: Batch, split: SplitSpec, first_row: int) -> list[object]:
    name = str(split.column)
    if name not in batch:
        raise DataError(f"data.split.column is {name!r}, but rows from {first_row} on have no such column; {nearest(name, batch)}")
    return batch[name]


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(2**63) <= value < 2**63 else "text"
    return "float" if isinstance(value, float) else "text"


def _column_kind(found: set[str]) -> str:
    found = found - {"null"}
    if found in ({"bool"}, {"int"}):
        return found.pop()
    return "float" if found and found <= {"int", "float"} else "text"
