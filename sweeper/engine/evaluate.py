"""Evaluation: how many validation rows are read when, and reading them piece by piece.

How many. Evaluation may cost at most `evaluate.share` of training, and every trial must read the same rows at the same nominal
number, so the count follows from the study alone, never from a clock. Costs are counted in tokens of a forward pass; a training
token costs three (forward, and twice that backward), with LoRA two, as frozen weights have no gradient:

    R = share * (2 or 3) * full_examples * (tokens per training row) / (tokens per validation row)
                                          rows that may be read in a full budget
    N = ceil(full_examples / every)       evaluations in it; M = rungs + 1 of them are at rungs or final

`at: best` compares evaluations with each other, so all read min(V, R / N) rows of the V there are. Otherwise rungs and the final
evaluation read V rows each if that takes at most half of R, else R / (2 M); the others share what is left, (R - M * those) /
(N - M), or read `evaluate.rows` if the spec says so. Never fewer than FEWEST rows (or V): less than that says nothing.
The rows are the first ones, which are in hash order.

How. *score* for classes, else the loss; *decode* besides where a metric reads text. A trial's rows go in chunks of
`chunk_tokens`, longest last; chunks of several trials share a pass (`work`), which is a piece: nothing hangs on a clock.
Decoding is counted by the mean tokens of its passes, but by its cache where that would be large.
Does not know schedules, optimizers or the depot.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from sweeper.data.tokens import TokenInfo, TokenSet
from sweeper.engine.base import EngineSetup
from sweeper.engine.batch import cut
from sweeper.engine.metrics import needs_text
from sweeper.engine.net import Net
from sweeper.engine.outcomes import RowOutcomes
from sweeper.engine.scheduler import Work
from sweeper.errors import DataError

FEWEST = 32
_PRODUCTS = {"lora": 2, "full": 3}  # a token in training, in tokens of a forward pass
_DECODE_ROWS = 16  # rows of a trial decoded at once: enough to fill the matrix products, few enough to answer soon
_CACHED = 8  # tokens in a decoding cache take no more memory than one in training


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
    training = _PRODUCTS[setup.training.method] * setup.full_examples * train.tokens / max(1, train.rows)
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


@dataclass(frozen=True)
class Chunk:
    """Rows that one trial has read, or decoded, together; `tokens` is what they count for in a pass."""

    work: Work
    rows: tuple[int, ...]
    tokens: int


class Evaluation:
    """One trial's evaluation on the first `count` rows of `data`: what is to be read, and what came of it.

    `texts` turns token ids into text; None where nothing is decoded. `work` does what `offered` names, chunk after chunk.
    """

    def __init__(
        self,
        slot: int,
        data: TokenSet,
        count: int,
        chunk_tokens: int,
        max_new_tokens: int,
        texts: Callable[[Sequence[int]], str] | None,
    ) -> None:
        self.slot, self.count, self.data = slot, count, data
        self.max_new_tokens, self.texts = max_new_tokens, texts
        info = data.info
        self.classes = len(info.label_ids) if info.task == "classify" else 0
        self._extra = sum(len(ids) - 1 for ids in info.label_ids)
        self._left: deque[Chunk] = deque(self._chunk(Work.READ, c) for c in cut(range(count), self._length, chunk_tokens))
        if texts is not None:
            by_prompt = sorted(range(count), key=lambda row: data.row(row).prompt)
            self._left += [self._chunk(Work.DECODE, tuple(by_prompt[i : i + _DECODE_ROWS])) for i in range(0, count, _DECODE_ROWS)]
        self.loss = np.zeros(count, np.float64)
        self.tokens = np.zeros(count, np.int64)
        self.scores = np.zeros((count, self.classes), np.float32)
        self.decoded = [""] * count

    @property
    def done(self) -> bool:
        """Whether every row was read."""
        return not self._left

    def offered(self) -> list[Chunk]:
        """The chunks to do next, in order, all of one kind of work; empty when done."""
        return [] if self.done else list(takewhile(lambda chunk: chunk.work is self._left[0].work, self._left))

    def next(self, ahead: int = 0) -> Chunk:
        """The chunk that comes `ahead` chunks after the first that is left."""
        return self._left[ahead]

    def finish(self) -> None:
        """The first chunk that is left was done."""
        self._left.popleft()

    def halve(self) -> bool:
        """Cuts the next chunk in two; False if it is a single row, or there is none."""
        if self.done or len(self._left[0].rows) == 1:
            return False
        chunk = self._left.popleft()
        middle = len(chunk.rows) // 2
        self._left.extendleft([self._chunk(chunk.work, chunk.rows[middle:]), self._chunk(chunk.work, chunk.rows[:middle])])
        return True

    def outcomes(self, row_ids: Sequence[str], references: Sequence[str]) -> RowOutcomes:
        """What came of it, in row order; to be asked once `done`. Arguments are the first `count` of the data's."""
        labels = np.array([self.data.row(i).label for i in range(self.count)], np.int32)
        return RowOutcomes(
            row_ids=list(row_ids),
            loss_sum=self.loss,
            tokens=self.tokens,
            labels=labels,
            scores=self.scores if self.classes else None,
            predictions=self.scores.argmax(1).astype(np.int32) if self.classes else None,
            texts=self.decoded if self.texts is not None else None,
            references=list(references) if self.texts is not None else None,
        )

    def _length(self, row: int) -> int:
        return self.data.length(row) + self._extra

    def _chunk(self, work: Work, rows: tuple[int, ...]) -> Chunk:
        if work is Work.READ:
            return Chunk(work, rows, sum(self._length(row) for row in rows))
        prompts = sum(self.data.row(row).prompt for row in rows)
        cached = prompts + len(rows) * self.max_new_tokens
        return Chunk(work, rows, max(1, cached // (1 + self.max_new_tokens), cached // _CACHED))


def work(net: Net, evaluations: Sequence[Evaluation]) -> None:
    """One pass over the next chunk of each of `evaluations`; one named twice has its next two done. All of one kind of work.

    They are of one study: same data, labels and settings. Raises DataError if a row's completion is not its label.
    """
    ahead: Counter[int] = Counter()
    chunks: list[Chunk] = []
    for evaluation in evaluations:
        chunks.append(evaluation.next(ahead[id(evaluation)]))
        ahead[id(evaluation)] += 1
    if chunks[0].work is Work.DECODE:
        _decode(net, evaluations, chunks)
    elif evaluations[0].classes:
        _score(net, evaluations, chunks)
    else:
        _read(net, evaluations, chunks)
    for evaluation in evaluations:
        evaluation.finish()


def _read(net: Net, evaluations: Sequence[Evaluation], chunks: Sequence[Chunk]) -> None:
    asked = [(e.slot, [e.data.row(i) for i in chunk.rows]) for e, chunk in zip(evaluations, chunks, strict=True)]
    for evaluation, chunk, values in zip(evaluations, chunks, net.losses(asked), strict=True):
        for row, (loss, tokens) in zip(chunk.rows, values, strict=True):
            evaluation.loss[row], evaluation.tokens[row] = loss, tokens


def _score(net: Net, evaluations: Sequence[Evaluation], chunks: Sequence[Chunk]) -> None:
    label_ids = evaluations[0].data.info.label_ids
    asked: list[tuple[int, list[npt.NDArray[np.int32]]]] = []
    for evaluation, chunk in zip(evaluations, chunks, strict=True):
        rows = [evaluation.data.row(i) for i in chunk.rows]
        for place, row in zip(chunk.rows, rows, strict=True):
            if tuple(row.ids[row.prompt :].tolist()) != label_ids[row.label]:
                raise DataError(f"validation row {place} does not end with the tokens of its label; prepare the data again")
        asked.append((evaluation.slot, [row.ids[: row.prompt] for row in rows]))
    for evaluation, chunk, scores in zip(evaluations, chunks, net.score(asked, label_ids), strict=True):
        for place, score in zip(chunk.rows, scores, strict=True):
            label = evaluation.data.row(place).label
            evaluation.scores[place] = score
            evaluation.loss[place] = -float(score[label])
            evaluation.tokens[place] = len(label_ids[label])


def _decode(net: Net, evaluations: Sequence[Evaluation], chunks: Sequence[Chunk]) -> None:
    first = evaluations[0]
    asked: list[tuple[int, list[npt.NDArray[np.int32]]]] = []
    for evaluation, chunk in zip(evaluations, chunks, strict=True):
        rows = [evaluation.data.row(i) for i in chunk.rows]
        asked.append((evaluation.slot, [row.ids[: row.prompt] for row in rows]))
    made = net.decode(asked, first.max_new_tokens, first.data.info.end_id)
    for evaluation, chunk, answers in zip(evaluations, chunks, made, strict=True):
        assert evaluation.texts is not None
        for place, tokens in zip(chunk.rows, answers, strict=True):
            evaluation.decoded[place] = evaluation.texts(tokens)
