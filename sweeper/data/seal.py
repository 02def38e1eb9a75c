"""The sealed test rows: put aside before training, opened once, on record.

`seal.json` beside the sealed folder says how many rows were sealed, when, and the hash of their file; `openings.jsonl` lists every
opening, written before a row is handed out. Both belong to the rows fingerprint, so they hold for every sweep on the same rows.
Does not know: who may open it, or what is measured then. Cost: hashing the file when it is opened.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sweeper.data.fingerprint import as_text, hash64
from sweeper.errors import DataError

RESERVED = ("row_id", "reference")
"""Names of our own columns; a column of the source with such a name is stored as source_NAME."""

_MOST_VALUES = 1000


def write_seal(folder: Path, fingerprint: str, rows: int) -> None:
    """Writes the record of `folder`/sealed/test.parquet.

    It lists hashes of each column's distinct values (where there are at most 1,000), so that the labels of sealed rows can be
    checked before training without an opening; neither the values, nor which row has which, can be read from it.
    """
    path = folder / "sealed" / "test.parquet"
    values: dict[str, list[str]] = {}
    for name in pq.read_schema(path).names:
        found = _distinct(path, name) if name not in RESERVED else None
        if found is not None:
            values[name] = sorted({_value_hash(value) for value in found})
    record = {
        "rows_fingerprint": fingerprint,
        "rows": rows,
        "sealed_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "blake2b": _hash(path),
        "values": values,
    }
    (folder / "seal.json").write_text(json.dumps(record, ensure_ascii=False))
    (folder / "seal.json").chmod(0o444)


def sealed_rows(folder: Path) -> int:
    """How many rows lie in the sealed `folder`; not an opening. Raises DataError if there is no seal."""
    return int(str(_record(folder)["rows"]))


def sealed_unknown(folder: Path, column: str, known: Iterable[str]) -> int:
    """How many distinct values of a column (name in our files) among the sealed rows are neither empty nor `known`.

    Not an opening. 0 where the column has too many values to have been listed.
    """
    values = _record(folder)["values"]
    found = values.get(column, []) if isinstance(values, dict) else []
    return len(set(found) - {_value_hash(value) for value in (*known, "")})


def openings(folder: Path) -> list[dict[str, object]]:
    """Every opening so far, oldest first: time, sweep, reason, rows."""
    path = folder.parent / "openings.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []


def open_sealed(folder: Path, sweep: str, reason: str) -> pa.Table:
    """The test rows: row_id and every column of the source. The opening is on record, on disk, before they are read.

    Raises DataError if there is no seal, or the rows are not those that were sealed (the opening is on record all the same).
    """
    record = _record(folder)
    entry = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "sweep": sweep,
        "reason": reason,
        "rows": record["rows"],
    }
    handle = os.open(folder.parent / "openings.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, (json.dumps(entry, ensure_ascii=False) + "\n").encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    path = folder / "test.parquet"
    if not path.exists() or _hash(path) != record["blake2b"]:
        raise DataError(
            f"the test rows in {folder} are not those that were sealed on {record['sealed_at']}; restore the file, or delete "
            f"{folder.parent} and build the data again"
        )
    return pq.read_table(path)


def _record(folder: Path) -> dict[str, object]:
    try:
        record: dict[str, object] = json.loads((folder.parent / "seal.json").read_text())
    except FileNotFoundError:
        raise DataError(f"there is no seal at {folder}; run the sweep on its data first") from None
    return record


def _distinct(path: Path, column: str) -> set[object] | None:
    found: set[object] = set()
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=[column]):
            found.update(pc.unique(batch.column(0)).to_pylist())
            if len(found) > _MOST_VALUES:
                return None
    return found


def _value_hash(value: object) -> str:
    return f"{hash64(as_text(value).strip().encode(), b'sweeper.seal.1'):016x}"


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
