"""Per-row outcomes of one evaluation, and the parquet part that keeps them.

Purpose: one record of what a trial did on every validation row, so that metrics, significance, slices, bias and review are
all read from the same numbers, later and for pruned trials too.
Does not know: models, trials, or where parts are stored (a depot does). Cost: a part of 2,000 rows and 2 classes is about
60 kB and takes 2 ms to write. The same rows give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True, eq=False)
class RowOutcomes:
    """What a trial did on n rows. Raises ValueError if the fields differ in length, or a row stands in it twice.

    Fields for what was not measured are None: `scores` and `predictions` without classes, `texts` where nothing was decoded.
    """

    row_ids: list[str]
    loss_sum: npt.NDArray[np.float64]  # [n], summed -log p over the row's target tokens, natural logarithm
    tokens: npt.NDArray[np.int64]  # [n], target tokens
    labels: npt.NDArray[np.int32]  # [n], class, -1 without classes
    scores: npt.NDArray[np.float32] | None = None  # [n, classes], sum of log p of the label's tokens, its end token included
    predictions: npt.NDArray[np.int32] | None = None  # [n], class
    texts: list[str] | None = None  # [n], decoded
    references: list[str] | None = None  # [n]

    def __post_init__(self) -> None:
        lengths = {name: len(value) for name, value in vars(self).items() if value is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"fields of row outcomes differ in length: {lengths}")
        if len(set(self.row_ids)) != len(self.row_ids):
            raise ValueError("a row stands in the outcomes twice; row ids must be unique")

    def __len__(self) -> int:
        return len(self.row_ids)

    def classes(self) -> npt.NDArray[np.int32] | None:
        """The predicted class of each row, int32 [n]: `predictions`, else the class with the highest score; None without both."""
        if self.predictions is not None or self.scores is None:
            return self.predictions
        best: npt.NDArray[np.int32] = np.argmax(self.scores, axis=1).astype(np.int32)
        return best

    def take(self, index: Sequence[int] | npt.NDArray[np.int64]) -> RowOutcomes:
        """The rows at `index` [m], in that order."""
        where = np.asarray(index, np.int64)

        def strings(values: list[str] | None) -> list[str] | None:
            return None if values is None else [values[i] for i in where]

        return RowOutcomes(
            row_ids=[self.row_ids[i] for i in where],
            loss_sum=self.loss_sum[where],
            tokens=self.tokens[where],
            labels=self.labels[where],
            scores=None if self.scores is None else self.scores[where],
            predictions=None if self.predictions is None else self.predictions[where],
            texts=strings(self.texts),
            references=strings(self.references),
        )


def join(parts: Sequence[RowOutcomes]) -> RowOutcomes:
    """All rows of `parts` in order, for an evaluation done piece by piece.

    A field that one part lacks must be lacking in all. Raises ValueError, also for no parts or a row in two of them.
    """
    if not parts:
        raise ValueError("no parts to join")

    def stacked(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        missing = sum(value is None for value in values)
        if missing:
            if missing < len(values):
                raise ValueError(f"{name} is known in some parts only")
            return None
        return [x for value in values for x in value] if isinstance(values[0], list) else np.concatenate(values)

    return RowOutcomes(**{name: stacked(name) for name in vars(parts[0])})


def to_parquet(rows: RowOutcomes) -> bytes:
    """The part of these rows: one column a field, `scores` as a fixed-size list; fields that are None have no column."""
    columns: dict[str, pa.Array] = {
        "row_id": pa.array(rows.row_ids, pa.string()),
        "loss_sum": pa.array(rows.loss_sum, pa.float64()),
        "tokens": pa.array(rows.tokens, pa.int64()),
        "label": pa.array(rows.labels, pa.int32()),
    }
    if rows.scores is not None:
        flat = pa.array(np.ascontiguousarray(rows.scores, np.float32).ravel(), pa.float32())
        columns["scores"] = pa.FixedSizeListArray.from_arrays(flat, rows.scores.shape[1])
    if rows.predictions is not None:
        columns["prediction"] = pa.array(rows.predictions, pa.int32())
    if rows.texts is not None:
        columns["text"] = pa.array(rows.texts, pa.string())
    if rows.references is not None:
        columns["reference"] = pa.array(rows.references, pa.string())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    written: bytes = sink.getvalue().to_pybytes()
    return written


def from_parquet(part: bytes) -> RowOutcomes:
    """The rows of a part that `to_parquet` wrote. Raises ValueError for anything else."""
    try:
        table = pq.read_table(pa.BufferReader(part))
    except pa.ArrowInvalid as error:
        raise ValueError(f"not a parquet file of row outcomes: {error}") from error
    missing = {"row_id", "loss_sum", "tokens", "label"} - set(table.column_names)
    if missing:
        found = ", ".join(table.column_names)
        raise ValueError(f"not a part of row outcomes: it lacks {', '.join(sorted(missing))}; it has {found}")

    def column(name: str) -> pa.Array | None:
        return table.column(name).combine_chunks() if name in table.column_names else None

    def strings(name: str) -> list[str] | None:
        values = column(name)
        return None if values is None else values.to_pylist()

    scores, prediction = column("scores"), column("prediction")
    return RowOutcomes(
        row_ids=table.column("row_id").to_pylist(),
        loss_sum=table.column("loss_sum").to_numpy(),
        tokens=table.column("tokens").to_numpy(),
        labels=table.column("label").to_numpy(),
        scores=None if scores is None else scores.flatten().to_numpy().reshape(len(table), scores.type.list_size),
        predictions=None if prediction is None else prediction.to_numpy(),
        texts=strings("text"),
        references=strings("reference"),
    )
