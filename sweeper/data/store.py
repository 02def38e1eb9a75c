"""The split on disk: each side's rows as parquet, in row-hash order.

    <data home>/<rows fingerprint>/
        train.parquet        row_id, then every column of the source
        validation.parquet
        sealed/test.parquet  the test rows; sealed/ is open to its owner only, and no worker is ever sent here
        seal.json            what was sealed (see seal.py); openings.jsonl beside it lists who opened it
        rows.json            RowsInfo
        <tokens fingerprint>/train, validation: token sets (see build.py)

Rows are brought into hash order by way of buckets of at most 64 MB (more where 64 of them do not hold a side), so that one bucket
is in memory, not the data set.
Does not know: templates, tokenizers, tasks. Cost: one more reading of the source, and one copy of it on disk (zstd).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sweeper.data.fingerprint import as_text, row_ids
from sweeper.data.scan import Progress, Scan
from sweeper.data.seal import RESERVED, write_seal
from sweeper.data.source import Batch, Source
from sweeper.data.split import SIDES, TEST
from sweeper.errors import DataError

_POSITION = "__position__"
_BUCKET_ROWS = 65_536
_BUCKET_BYTES = 64 * 2**20
_MOST_BUCKETS = 64
"""Of one side, because every bucket is an open file while rows are sorted."""
_TYPES = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "text": pa.string()}
_ASIDE = ".aside-"


@dataclass(frozen=True)
class RowsInfo:
    """What is known of a split's rows without reading them."""

    fingerprint: str
    rows: dict[str, int]  # side -> rows
    duplicates: int
    across: int  # rows whose exact content stands on another side as well
    columns: dict[str, str]  # name in the source -> name in the parquet files

    @classmethod
    def read(cls, folder: Path) -> RowsInfo | None:
        """The info of a stored split; None if there is none."""
        try:
            return cls(**json.loads((folder / "rows.json").read_text()))
        except FileNotFoundError:
            return None


def stored_names(columns: Iterable[str]) -> dict[str, str]:
    """Name of each source column in our files: its own, or source_NAME (source_source_NAME, ...) where ours clash."""
    taken = set(columns)
    names = {}
    for column in columns:
        name = column
        while name in RESERVED or (name != column and name in taken):
            name = f"source_{name}"
        names[column] = name
        taken.add(name)
    return names


def store_rows(source: Source, found: Scan, fingerprint: str, data_home: Path, progress: Progress | None = None) -> RowsInfo:
    """Reads the source again and stores its sides under `fingerprint`, whole or not at all; another process may win the race."""
    folder = data_home / fingerprint
    info = RowsInfo(
        fingerprint=fingerprint,
        rows={side: int((found.sides == number).sum()) for number, side in enumerate(SIDES)},
        duplicates=found.duplicates,
        across=found.across,
        columns=stored_names(found.columns),
    )
    aside = new_aside(data_home)
    try:
        buckets = _fill_buckets(source, found, info, aside, progress)
        sealed = aside / "sealed"
        sealed.mkdir(mode=0o700)
        schema = _schema(found, info)
        for number, side in enumerate(SIDES):
            path = sealed / "test.parquet" if number == TEST else aside / f"{side}.parquet"
            _merge(buckets[number], schema, path)
            path.chmod(0o400 if number == TEST else 0o444)
        write_seal(aside, fingerprint, info.rows["test"])
        (aside / "rows.json").write_text(json.dumps(asdict(info), indent=1))
        shutil.rmtree(aside / "buckets")
        move_in(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return info


def new_aside(data_home: Path) -> Path:
    """A new folder to write in before `move_in`. Sweeps out what writers that died left more than a day ago."""
    data_home.mkdir(parents=True, exist_ok=True)
    for old in data_home.glob(f"{_ASIDE}*"):
        if time.time() - old.stat().st_mtime > 86_400:
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=_ASIDE, dir=data_home))


def move_in(aside: Path, folder: Path) -> None:
    """Renames a finished folder to its place; if another process put the same there first, its work stands."""
    aside.chmod(0o755)
    try:
        os.rename(aside, folder)
    except OSError:
        if not folder.is_dir():
            raise


def _schema(found: Scan, info: RowsInfo) -> pa.Schema:
    fields = [(info.columns[name], _TYPES[kind]) for name, kind in found.columns.items()]
    return pa.schema([("row_id", pa.string()), *fields])


def _positions(found: Scan) -> npt.NDArray[np.int64]:
    """Each row's place in its own side, in the order of hash and occurrence."""
    order = np.lexsort((found.occurrences, found.hashes, found.sides))
    starts = np.cumsum([0, *(int((found.sides == side).sum()) for side in range(len(SIDES)))])
    positions = np.empty(len(order), np.int64)
    positions[order] = np.arange(len(order)) - starts[found.sides[order]]
    return positions


def _fill_buckets(source: Source, found: Scan, info: RowsInfo, aside: Path, progress: Progress | None) -> dict[int, list[Path]]:
    total = len(found.hashes)
    positions = _positions(found)
    fitting = max(1, int(_BUCKET_BYTES / max(1.0, found.characters / total)))
    width = max(min(_BUCKET_ROWS, fitting), -(-total // _MOST_BUCKETS))
    bucket_of = positions // width
    schema = _schema(found, info).append(pa.field(_POSITION, pa.int64()))
    (aside / "buckets").mkdir()
    writers: dict[tuple[int, int], pa.RecordBatchFileWriter] = {}
    paths: dict[int, list[Path]] = {side: [] for side in range(len(SIDES))}
    done = 0
    try:
        for part in source.parts:
            for batch in part.batches():
                count = len(next(iter(batch.values())))
                here = slice(done, done + count)
                if here.stop > total:
                    raise _changed(source)
                ids = row_ids(found.hashes[here], found.occurrences[here])
                table = _batch_table(batch, ids, positions[here], schema, found, info)
                places = np.stack([found.sides[here].astype(np.int64), bucket_of[here]], axis=1)
                for side, bucket in np.unique(places, axis=0).tolist():
                    if (side, bucket) not in writers:
                        path = aside / "buckets" / f"{side}-{bucket:05d}.arrow"
                        writers[side, bucket] = pa.ipc.new_file(str(path), schema)
                        paths[side].append(path)
                    mask = (places == (side, bucket)).all(axis=1)
                    writers[side, bucket].write_batch(table.filter(pa.array(mask)))
                done += count
                if progress is not None:
                    progress("sorting", done, total)
    finally:
        for writer in writers.values():
            writer.close()
    if done != total:
        raise _changed(source)
    return {side: sorted(group) for side, group in paths.items()}


def _batch_table(
    batch: Batch, ids: list[str], positions: npt.NDArray[np.int64], schema: pa.Schema, found: Scan, info: RowsInfo
) -> pa.RecordBatch:
    arrays = [pa.array(ids, pa.string())]
    for name, kind in found.columns.items():
        values = batch.get(name)
        if values is None:
            arrays.append(pa.nulls(len(ids), _TYPES[kind]))
        elif kind == "text":
            arrays.append(pa.array([value if value is None else as_text(value) for value in values], pa.string()))
        else:
            arrays.append(pa.array(values, _TYPES[kind]))
    return pa.record_batch([*arrays, pa.array(positions)], schema=schema)


def _merge(buckets: list[Path], schema: pa.Schema, path: Path) -> None:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for bucket in buckets:
            with pa.memory_map(str(bucket)) as file:
                table = pa.ipc.open_file(file).read_all()
                table = table.take(pc.sort_indices(table[_POSITION])).drop_columns([_POSITION])
                writer.write_table(table)
            bucket.unlink()


def _changed(source: Source) -> DataError:
    return DataError(f"{source.name} changed while it was read; run again when nobody writes to it")
