"""Memory-mapped token rows: what an engine reads.

A folder holds one *side* of a split (train or validation; test never leaves the driver's data folder):

    ids.bin       int32, all rows one after another
    target.bin    uint8, one byte a token: 1 where the token is to be predicted (its loss counts)
    offsets.npy   int64 [rows + 1]
    prompts.npy   int32 [rows]: tokens of the prompt; score and decode start after it
    labels.npy    int32 [rows]: class of the row (index into TokenInfo.labels), -1 without classes
    rows.parquet  row_id, reference (text of the completion), and every other column of the source
    info.json     TokenInfo

Does not know: how rows were read, split or tokenised (`build.py` does). Cost: opening is a few system calls; a row is a slice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class TokenInfo:
    """What is true of all rows of a side."""

    task: str  # classify, instruct, text or chat
    rows: int
    tokens: int
    longest: int  # tokens of the longest row
    labels: tuple[str, ...] = ()  # classify: the words the model answers, in class order
    label_ids: tuple[tuple[int, ...], ...] = ()  # classify: tokens of each label, its end token included
    end_id: int | None = None  # token that ends an answer
    rows_fingerprint: str = ""
    tokens_fingerprint: str = ""


@dataclass(frozen=True)
class TokenRow:
    """One row. `ids` int32 [L]; `target` bool [L], True where the token at that position is predicted from those before it."""

    ids: npt.NDArray[np.int32]
    target: npt.NDArray[np.bool_]
    prompt: int  # tokens of the prompt; for text and chat 0
    label: int  # class, or -1


class TokenSet:
    """One side of a split, read-only and memory-mapped. Rows are numbered from 0 in row-hash order.

    Raises FileNotFoundError if the folder is not a complete token set.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        raw = json.loads((folder / "info.json").read_text())
        raw["labels"] = tuple(raw["labels"])
        raw["label_ids"] = tuple(tuple(ids) for ids in raw["label_ids"])
        self.info = TokenInfo(**raw)
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r", allow_pickle=False)
        self._prompts = np.load(folder / "prompts.npy", mmap_mode="r", allow_pickle=False)
        self._labels = np.load(folder / "labels.npy", mmap_mode="r", allow_pickle=False)
        self._ids = np.memmap(folder / "ids.bin", dtype=np.int32, mode="r") if self.info.tokens else np.empty(0, np.int32)
        self._target = np.memmap(folder / "target.bin", dtype=np.uint8, mode="r") if self.info.tokens else np.empty(0, np.uint8)

    def __len__(self) -> int:
        return self.info.rows

    def row(self, index: int) -> TokenRow:
        """Row `index`, as views of the mapped files."""
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        return TokenRow(
            ids=self._ids[start:end],
            target=self._target[start:end].view(np.bool_),
            prompt=int(self._prompts[index]),
            label=int(self._labels[index]),
        )

    def length(self, index: int) -> int:
        """Tokens of row `index`."""
        return int(self._offsets[index + 1] - self._offsets[index])

    def start(self) -> npt.NDArray[np.int32]:
        """int32 [S]: the tokens that every row begins with, none of which predicts a target; each row has more than these."""
        begins, lengths = self._offsets[:-1], np.diff(self._offsets)
        count, least = 0, int(lengths.min()) if len(lengths) else 0
        # The token after those shared must not be a target, for it is the last of them that would predict it.
        while count + 1 < least and not self._target[begins + count + 1].any():
            tokens = self._ids[begins + count]
            if (tokens != tokens[0]).any():
                break
            count += 1
        return np.array(self._ids[begins[0] : begins[0] + count], np.int32) if count else np.empty(0, np.int32)

    def row_ids(self) -> list[str]:
        """Every row's id, in row order."""
        return [str(x) for x in self.column("row_id")]

    def references(self) -> list[str]:
        """Every row's completion as text, in row order; empty for text and chat."""
        return [str(x) for x in self.column("reference")]

    def column(self, name: str) -> list[object]:
        """A column of the source (or row_id, reference), in row order. Raises KeyError."""
        schema = pq.read_schema(self.folder / "rows.parquet")
        if name not in schema.names:
            raise KeyError(f"no column {name!r}; there are: {', '.join(schema.names)}")
        values: list[object] = pq.read_table(self.folder / "rows.parquet", columns=[name]).column(0).to_pylist()
        return values

    def columns(self) -> list[str]:
        """Names of all columns of rows.parquet."""
        return list(pq.read_schema(self.folder / "rows.parquet").names)


def write_token_set(
    folder: Path,
    info: TokenInfo,
    rows: Sequence[TokenRow],
    table: pa.Table,
) -> None:
    """Writes a token set whole into `folder` (which must not exist yet); for sides small enough to hold, and for tests."""
    folder.mkdir(parents=True)
    lengths = [len(row.ids) for row in rows]
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    np.save(folder / "prompts.npy", np.array([row.prompt for row in rows], np.int32))
    np.save(folder / "labels.npy", np.array([row.label for row in rows], np.int32))
    with open(folder / "ids.bin", "wb") as ids, open(folder / "target.bin", "wb") as target:
        for row in rows:
            ids.write(row.ids.astype(np.int32).tobytes())
            target.write(row.target.astype(np.uint8).tobytes())
    pq.write_table(table, folder / "rows.parquet")
    (folder / "info.json").write_text(json.dumps(asdict(info)))
