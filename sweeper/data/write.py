"""Writing a token set bit by bit: what `tokens.py` reads, without holding it in memory.

Does not know: tasks, tokenizers. Cost: sequential writes; 16 bytes a row stay in memory (offsets, prompts, labels).
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sweeper.data.tokens import TokenInfo, TokenRow


class TokenWriter:
    """Writes one side into `folder`, which must not exist yet. Used as a context manager; `finish` makes it complete."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._offsets = array("q", [0])
        self._prompts = array("i")
        self._labels = array("i")
        self._longest = 0
        self._ids = open(folder / "ids.bin", "wb")  # noqa: SIM115
        self._target = open(folder / "target.bin", "wb")  # noqa: SIM115
        self._table = pq.ParquetWriter(folder / "rows.parquet", schema, compression="zstd")

    def append(self, rows: Sequence[TokenRow], table: pa.RecordBatch) -> None:
        """Adds rows and, in the same order, their line of rows.parquet."""
        if not rows:
            return
        for row in rows:
            self._offsets.append(self._offsets[-1] + len(row.ids))
            self._prompts.append(row.prompt)
            self._labels.append(row.label)
            self._longest = max(self._longest, len(row.ids))
        self._ids.write(np.concatenate([row.ids for row in rows]).astype(np.int32).tobytes())
        self._target.write(np.concatenate([row.target for row in rows]).astype(np.uint8).tobytes())
        self._table.write_batch(table)

    def finish(self, info: TokenInfo) -> TokenInfo:
        """Writes what is left, with rows, tokens and longest of `info` filled in, and makes every file read-only."""
        self._close()
        info = replace(info, rows=len(self._prompts), tokens=self._offsets[-1], longest=self._longest)
        np.save(self._folder / "offsets.npy", np.array(self._offsets, np.int64))
        np.save(self._folder / "prompts.npy", np.array(self._prompts, np.int32))
        np.save(self._folder / "labels.npy", np.array(self._labels, np.int32))
        (self._folder / "info.json").write_text(json.dumps(asdict(info)))
        for path in self._folder.iterdir():
            path.chmod(0o444)
        return info

    def _close(self) -> None:
        for file in (self._ids, self._target, self._table):
            file.close()

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()
