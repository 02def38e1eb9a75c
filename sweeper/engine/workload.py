"""A typical trial's work, to be measured at an engine's start: the study's own rows and default configuration, on a few layers.

    Workload      what a pass of so many tokens consists of: whole chunks of as many trials as that takes, as training packs them
    Slice         the net with its first layers only, adapters placed: what takes seconds on all layers takes tenths on three.
                  Embedding, head and loss are in it, so that the whole follows from slices of two depths

Does not know clocks, bytes or what is decided. Cost: adapters for a few layers while a slice is open; nothing stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from sweeper.data.tokens import TokenRow, TokenSet
from sweeper.engine.batch import cut
from sweeper.engine.lora_net import LoraNet
from sweeper.engine.optimizer import Row
from sweeper.engine.packed import Chunk
from sweeper.engine.params import Params
from sweeper.engine.targets import block
from sweeper.spec.models import TrainingSpec

SAMPLE_ROWS = 512
MOST_TRIALS = 16
"""Adapters that a slice holds; more chunks than that are shared out among them."""


@dataclass(frozen=True)
class Workload:
    """Rows as a trial reads them, in its order, `batch` to a step, and the configuration they are trained with."""

    params: Params
    rows: tuple[TokenRow, ...]
    batch: int
    chunk_tokens: int

    @property
    def row_tokens(self) -> float:
        """Mean tokens of a row."""
        return sum(len(row.ids) for row in self.rows) / len(self.rows)

    @property
    def step_tokens(self) -> int:
        """Tokens that a trial alone has in a pass: its batch, or the largest chunk of it."""
        return max(1, min(round(self.batch * self.row_tokens), max(self.chunk_tokens, self.longest)))

    @property
    def longest(self) -> int:
        """Tokens of the longest row of the sample."""
        return max(len(row.ids) for row in self.rows)

    @property
    def shortest(self) -> int:
        """Tokens of the shortest row of the sample."""
        return min(len(row.ids) for row in self.rows)

    def chunks(self, tokens: int) -> list[Chunk]:
        """About `tokens` tokens, never more, and at least a row: whole rows, `batch` to a chunk, each chunk of another trial."""
        taken: list[TokenRow] = []
        for i in range(tokens):
            row = self.rows[i % len(self.rows)]
            tokens -= len(row.ids)
            if tokens < 0:
                break
            taken.append(row)
        taken = taken or [min(self.rows, key=lambda row: len(row.ids))]
        parts = [part for i in range(0, len(taken), self.batch) for part in self._cut(taken[i : i + self.batch])]
        weight, smoothing = 1 / self.batch, self.params.label_smoothing
        return [Chunk(i % MOST_TRIALS, part, weight, smoothing, seed=i) for i, part in enumerate(parts)]

    def _cut(self, batch: Sequence[TokenRow]) -> list[list[TokenRow]]:
        return [[batch[i] for i in part] for part in cut(range(len(batch)), lambda i: len(batch[i].ids), self.chunk_tokens)]


def default_params(training: TrainingSpec) -> Params:
    """The study's default configuration, which trial 0 has."""
    return Params(
        learning_rate=training.default_learning_rate(),
        batch_size=training.batch_size,
        weight_decay=training.weight_decay,
        dropout=training.dropout,
        rank=training.rank,
        alpha=training.alpha,
        targets=training.targets,
        warmup=training.warmup,
        schedule=training.schedule,
        beta1=training.beta1,
        beta2=training.beta2,
        clip=training.clip,
        label_smoothing=training.label_smoothing,
    )


def workload(training: TrainingSpec, data: TokenSet, chunk_tokens: int) -> Workload:
    """The work of trial 0 on `data` (at least one row), of which SAMPLE_ROWS rows evenly spread are read."""
    count = min(len(data), SAMPLE_ROWS)
    rows = tuple(data.row(int(i)) for i in np.linspace(0, len(data) - 1, count).round())
    return Workload(default_params(training), rows, min(training.batch_size, len(data)), chunk_tokens)


class Slice:
    """A net of `layers` layers, with a row for each adapter on them."""

    def __init__(self, net: LoraNet, layers: int, rows: Sequence[Row]) -> None:
        self.layers = layers
        self.rows = rows
        self._net = net

    def train(self, chunks: Sequence[Chunk]) -> list[float]:
        """As `Net.train`, through these layers only."""
        return self._net.train(chunks)


@contextmanager
def slice_of(net: LoraNet, params: Params, layers: int, trials: int = MOST_TRIALS) -> Iterator[Slice]:
    """`net` with its first `layers` trained layers and `trials` adapters on them. The net must have no trials."""
    backbone = net.packed.model.base_model
    every, prefix = backbone.layers, net.packed.prefix
    first = len(every) - net.depth
    paths = [path for path in net.paths(params) if (number := block(path)) is not None and first <= number < first + layers]
    part = replace(params, targets=",".join(paths))
    backbone.layers, net.packed.prefix = every[first : first + layers], None
    try:
        rows = [net.place(slot, part, slot) for slot in range(trials)]
        yield Slice(net, layers, rows)
    finally:
        for slot in range(trials):
            net.remove(slot)
        backbone.layers, net.packed.prefix = every, prefix
