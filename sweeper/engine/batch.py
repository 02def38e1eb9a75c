"""A trial's own batches: data order, batches, and the chunks a batch is cut into.

The stream of examples is one permutation of the training rows after another (epoch e is seeded by the trial's seed and e), cut
into batches of the trial's size and ended exactly at its budget. The position in the stream is the whole state, so that a
resumed trial goes on with the row it would have read. Chunks are cut by the trial's own rows and `chunk_tokens`, never by
what its neighbours do.
Does not know torch. A batch costs microseconds a row; a permutation of a million rows 20 ms an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sweeper.data.tokens import TokenRow, TokenSet
from sweeper.engine.seeds import mix


@dataclass(frozen=True)
class Batch:
    """The rows of one optimizer step. `targets` counts the tokens its loss is averaged over."""

    rows: tuple[int, ...]
    chunks: tuple[tuple[int, ...], ...]  # row indices, every row of `rows` once
    sizes: tuple[int, ...]  # tokens of each chunk
    targets: int


def target_tokens(row: TokenRow) -> int:
    """Tokens of `row` whose loss counts. The first token is predicted from nothing, so it never does."""
    return int(np.count_nonzero(row.target[1:]))


def cut(rows: Sequence[int], length: Callable[[int], int], chunk_tokens: int) -> tuple[tuple[int, ...], ...]:
    """Chunks of at most `chunk_tokens` tokens, rows of like length together; a longer row is a chunk of its own.

    Two neighbouring chunks never fit into one, so that a lone trial's chunks are trained one by one.
    """
    chunks: list[tuple[int, ...]] = []
    current: list[int] = []
    room = chunk_tokens
    for row in sorted(rows, key=length):
        tokens = length(row)
        if current and tokens > room:
            chunks.append(tuple(current))
            current, room = [], chunk_tokens
        current.append(row)
        room -= tokens
    if current:
        chunks.append(tuple(current))
    return tuple(chunks)


class Batches:
    """The batches of one trial, by position in its stream of examples."""

    def __init__(self, data: TokenSet, seed: int, batch_size: int, examples: int, chunk_tokens: int) -> None:
        if len(data) == 0:
            raise ValueError("the training set has no rows")
        self._data = data
        self._seed = seed
        self._batch_size = batch_size
        self._examples = examples
        self._chunk_tokens = chunk_tokens
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, np.int64)

    @property
    def chunk_tokens(self) -> int:
        """Tokens of the largest chunk of several rows."""
        return self._chunk_tokens

    def halve(self, batch: Batch, chunk: int) -> bool:
        """Has that chunk, and all to come, cut in two; False if it is a single row."""
        if len(batch.chunks[chunk]) == 1:
            return False
        self._chunk_tokens = batch.sizes[chunk] // 2
        return True

    def at(self, seen: int) -> Batch:
        """The batch that begins after `seen` examples. Raises ValueError past the budget."""
        count = min(self._batch_size, self._examples - seen)
        if count < 1:
            raise ValueError(f"the budget of {self._examples} examples is used up at {seen}")
        rows = tuple(self._row(seen + i) for i in range(count))
        chunks = cut(rows, self._data.length, self._chunk_tokens)
        return Batch(
            rows=rows,
            chunks=chunks,
            sizes=tuple(sum(self._data.length(row) for row in chunk) for chunk in chunks),
            targets=sum(target_tokens(self._data.row(row)) for row in rows),
        )

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, len(self._data))
        if epoch != self._epoch:
            self._order = np.random.default_rng(mix(self._seed, 1, epoch)).permutation(len(self._data))
            self._epoch = epoch
        return int(self._order[place])
