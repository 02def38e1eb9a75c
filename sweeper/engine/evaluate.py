"""Evaluation: how many validation rows are read when, and reading them piece by piece.

How many. Evaluation may cost at most `evaluate.share` of training, and every trial must read the same rows at the same nominal
number, so the count follows from the study alone, never from a clock. Costs are counted in tokens of a forward pass; a training
token costs three (forward, and twice that backward):

    R = share * 3 * full_examples * (tokens per training row) / (tokens per validation row)
                                          rows that may be read in a full budget
    N = ceil(full_examples / every)       evaluations in it; M = rungs + 1 of them are at rungs or final

`at: best` compares evaluations with each other, so all read min(V, R / N) rows of the V there are. Otherwise rungs and the final
evaluation read V rows each if that takes at most half of R, else R / (2 M); the others share what is left, (R - M * those) /
(N - M), or read `evaluate.rows` if the spec says so. Never fewer than FEWEST rows (or V): less than that says nothing.
The rows are the first ones, which are in hash order.

How. *score* for classes, else the loss; *decode* besides where a metric reads text. Rows go in chunks of `chunk_tokens`, longest
last, and a piece stops after PIECE_SECONDS; where pieces end changes no number.
Does not know schedules, optimizers or the depot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sweeper.data.tokens import TokenInfo, TokenSet
from sweeper.engine.base import EngineSetup
from sweeper.engine.batch import cut
from sweeper.engine.metrics import needs_text
from sweeper.engine.net import Net
from sweeper.engine.outcomes import RowOutcomes
from sweeper.errors import DataError

FEWEST = 32
PIECE_SECONDS = 2.0
_DECODE_ROWS = 16  # rows decoded at once: enough to fill the matrix products, few enough to answer soon


@dataclass(frozen=True)
class Plan:
    """Validation rows read between rungs (`between`), and at rungs and at the end (`full`)."""

    between: int
    full: int


def plan(setup: EngineSetup, train: TokenInfo, validation: TokenInfo) -> Plan:
    """The counts for a study; see the top of this file for the arithmetic."""
    rows = validation.rows
    every = setup.evaluate.every or max(1, -(-setup.full_examples // 10))
    evaluations = max(1, -(-setup.full_examples // every))
    special = min(evaluations, setup.rungs + 1)
    training = 3 * setup.full_examples * train.tokens / max(1, train.rows)
    readable = setup.evaluate.share * training / _row_cost(setup, validation)

    def clamp(count: float) -> int:
        return min(rows, max(FEWEST, math.floor(count)))

    if setup.at == "best":
        same = clamp(readable / evaluations)
        return Plan(same, same)
    if readable >= evaluations * rows:
        full = between = rows
    else:
        full = rows if special * rows <= readable / 2 else clamp(readable / (2 * special))
        between = clamp(min(full, (readable - special * full) / max(1, evaluations - special)))
    if setup.evaluate.rows is not None:
        between = min(rows, setup.evaluate.rows)
    return Plan(between, max(full, between))


def _row_cost(setup: EngineSetup, validation: TokenInfo) -> float:
    """Forward tokens of one validation row: itself, the other labels' branches, and what is decoded after it."""
    cost = validation.tokens / max(1, validation.rows)
    cost += sum(len(ids) - 1 for ids in validation.label_ids[1:])
    if needs_text(setup.metrics, validation.task):
        cost += cost + setup.evaluate.max_new_tokens
    return max(1.0, cost)


class Evaluation:
    """One trial's evaluation on the first `count` rows of `data`; `done` after enough calls of `work`.

    `texts` turns token ids into text; None where nothing is decoded. Raises DataError if a row's completion is not its label.
    """

    def __init__(
        self,
        net: Net,
        slot: int,
        data: TokenSet,
        count: int,
        chunk_tokens: int,
        max_new_tokens: int,
        texts: Callable[[Sequence[int]], str] | None,
    ) -> None:
        self.count = count
        self._net, self._slot, self._data = net, slot, data
        self._max_new_tokens, self._texts = max_new_tokens, texts
        info = data.info
        self._classes = len(info.label_ids) if info.task == "classify" else 0
        extra = sum(len(ids) - 1 for ids in info.label_ids)
        self._chunks = [("read", c) for c in cut(range(count), lambda row: data.length(row) + extra, chunk_tokens)]
        if texts is not None:
            by_prompt = sorted(range(count), key=lambda row: data.row(row).prompt)
            decode = [tuple(by_prompt[i : i + _DECODE_ROWS]) for i in range(0, count, _DECODE_ROWS)]
            self._chunks += [("decode", c) for c in decode]
        self._at = 0
        self._loss = np.zeros(count, np.float64)
        self._tokens = np.zeros(count, np.int64)
        self._scores = np.zeros((count, self._classes), np.float32)
        self._decoded = [""] * count

    @property
    def done(self) -> bool:
        """Whether every row was read."""
        return self._at == len(self._chunks)

    def work(self, seconds: float = PIECE_SECONDS) -> None:
        """Reads chunks, at least one, until `seconds` have passed or none is left."""
        until = time.monotonic() + seconds
        while not self.done:
            kind, chunk = self._chunks[self._at]
            if kind == "decode":
                self._decode(chunk)
            elif self._classes:
                self._score(chunk)
            else:
                self._read(chunk)
            self._at += 1
            if time.monotonic() >= until:
                return

    def halve(self) -> bool:
        """Cuts the next chunk in two; False if it is a single row, or there is none."""
        if self.done:
            return False
        kind, chunk = self._chunks[self._at]
        middle = len(chunk) // 2
        if middle:
            self._chunks[self._at : self._at + 1] = [(kind, chunk[:middle]), (kind, chunk[middle:])]
        return middle > 0

    def outcomes(self, row_ids: Sequence[str], references: Sequence[str]) -> RowOutcomes:
        """What came of it, in row order; to be asked once `done`. Arguments are the first `count` of the data's."""
        labels = np.array([self._data.row(i).label for i in range(self.count)], np.int32)
        return RowOutcomes(
            row_ids=list(row_ids),
            loss_sum=self._loss,
            tokens=self._tokens,
            labels=labels,
            scores=self._scores if self._classes else None,
            predictions=self._scores.argmax(1).astype(np.int32) if self._classes else None,
            texts=self._decoded if self._texts is not None else None,
            references=list(references) if self._texts is not None else None,
        )

    def _read(self, chunk: Sequence[int]) -> None:
        values = self._net.losses(self._slot, [self._data.row(i) for i in chunk])
        for row, (loss, tokens) in zip(chunk, values, strict=True):
            self._loss[row], self._tokens[row] = loss, tokens

    def _score(self, chunk: Sequence[int]) -> None:
        rows = [self._data.row(i) for i in chunk]
        label_ids = self._data.info.label_ids
        for place, row in zip(chunk, rows, strict=True):
            if tuple(row.ids[row.prompt :].tolist()) != label_ids[row.label]:
                raise DataError(f"validation row {place} does not end with the tokens of its label; prepare the data again")
        scores = self._net.score(self._slot, [row.ids[: row.prompt] for row in rows], label_ids)
        for place, row, score in zip(chunk, rows, scores, strict=True):
            self._scores[place] = score
            self._loss[place] = -float(score[row.label])
            self._tokens[place] = len(label_ids[row.label])

    def _decode(self, chunk: Sequence[int]) -> None:
        assert self._texts is not None
        rows = [self._data.row(i) for i in chunk]
        prompts = [row.ids[: row.prompt] for row in rows]
        made = self._net.decode(self._slot, prompts, self._max_new_tokens, self._data.info.end_id)
        for place, tokens in zip(chunk, made, strict=True):
            self._decoded[place] = self._texts(tokens)
