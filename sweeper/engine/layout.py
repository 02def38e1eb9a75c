"""How rows of several trials lie one after another in one micro-step, without padding.

    segment   neighbouring tokens of one trial's chunk: what an adapter is applied to
    span      neighbouring rows of equal length, of one trial or several: what attention runs on at once
    filler    tokens of no trial at the end, so that a matrix product that trials share never has fewer than MIN_ROWS rows,
              below which a row's result depends on how many others there are (measured; `steady.py` looks whether it holds here),
              and `spare` of them where the last numbers of a tensor are computed otherwise than the rest

Attention and LoRA layers read the layout from a `Current` that the model holds, because transformers' layers pass nothing on.
Knows tensors but no model. Building one costs about 10 microseconds a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from sweeper.engine.attention import RowCache

MIN_ROWS = 16


@dataclass(frozen=True)
class RowInput:
    """Tokens of one row, int32 [L]. With `branches`, the lengths of alternatives that end the row: each continues from the
    tokens before all of them, and sees neither the others nor the positions they take."""

    ids: npt.NDArray[np.int32]
    branches: tuple[int, ...] = ()
    start: int = 0  # position of the first token; above 0 when decoding from a cache


@dataclass(frozen=True)
class Part:
    """Rows of one trial's chunk. `seed` of its dropout masks; None for no dropout."""

    slot: int
    rows: Sequence[RowInput]
    seed: int | None = None


@dataclass(frozen=True)
class Segment:
    """Tokens [start, end) of the layout belong to the trial in `slot`."""

    slot: int
    start: int
    end: int
    seed: int | None


@dataclass(frozen=True)
class Span:
    """`rows` rows of `length` tokens each from token `start` on; causal, or by `mask` (bool [length, length], True: sees)."""

    start: int
    rows: int
    length: int
    mask: Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """One micro-step: token ids and positions [T], and who they belong to. `starts` is where each of `rows` begins, in order."""

    ids: Tensor
    positions: Tensor
    segments: tuple[Segment, ...]
    spans: tuple[Span, ...]
    starts: tuple[int, ...]
    rows: tuple[RowInput, ...]
    cache: RowCache | None = None


@dataclass
class Current:
    """The layout being computed; None between micro-steps. `spare`: rows of filler that every layout has at least."""

    layout: Layout | None = None
    spare: int = 0

    def require(self) -> Layout:
        """The layout. Raises RuntimeError outside a micro-step (a mistake of ours)."""
        if self.layout is None:
            raise RuntimeError("a packed layer was called without a layout")
        return self.layout

    @contextmanager
    def at(self, layout: Layout) -> Iterator[None]:
        """While open, `layout` is the one being computed."""
        outer, self.layout = self.layout, layout
        try:
            yield
        finally:
            self.layout = outer


def filler(rows: int, spare: int) -> int:
    """How many rows of filler follow `rows` rows, for products of at least MIN_ROWS and `spare` at the end."""
    return max(0, MIN_ROWS - rows, spare)


def build(parts: Sequence[Part], device: torch.device | str, cache: RowCache | None = None, spare: int = 0) -> Layout:
    """Concatenates the rows of `parts`, in order, with filler up to MIN_ROWS tokens, and at least `spare`."""
    ids: list[npt.NDArray[np.int32]] = []
    positions: list[npt.NDArray[np.int64]] = []
    segments: list[Segment] = []
    spans: list[Span] = []
    starts: list[int] = []
    at = 0
    for part in parts:
        begin = at
        for row in part.rows:
            ids.append(row.ids)
            positions.append(row.start + _positions(len(row.ids), row.branches))
            starts.append(at)
            at += len(row.ids)
        segments.append(Segment(part.slot, begin, at, part.seed))
    everyone = zip((row for part in parts for row in part.rows), starts, strict=True)
    for (length, branches), group in groupby(everyone, key=lambda pair: (len(pair[0].ids), pair[0].branches)):
        first, *others = group
        mask = _branch_mask(length, branches).to(device) if branches else None
        spans.append(Span(first[1], 1 + len(others), length, mask))
    fill = filler(at, spare)
    if fill > 0:
        ids.append(np.zeros(fill, np.int32))
        positions.append(np.arange(fill))
        spans.append(Span(at, 1, fill))
    return Layout(
        ids=torch.from_numpy(np.concatenate(ids).astype(np.int64)).to(device),
        positions=torch.from_numpy(np.concatenate(positions)).to(device),
        segments=tuple(segments),
        spans=tuple(spans),
        starts=tuple(starts),
        rows=tuple(row for part in parts for row in part.rows),
        cache=cache,
    )


def _positions(length: int, branches: tuple[int, ...]) -> npt.NDArray[np.int64]:
    stem = length - sum(branches)
    return np.concatenate([np.arange(stem), *(np.arange(stem, stem + branch) for branch in branches)]).astype(np.int64)


def _branch_mask(length: int, branches: tuple[int, ...]) -> Tensor:
    """bool [length, length]: causal, and no branch sees another."""
    owner = np.zeros(length, np.int64)
    at = length - sum(branches)
    for number, branch in enumerate(branches, start=1):
        owner[at : at + branch] = number
        at += branch
    visible = (owner[None, :] == 0) | (owner[None, :] == owner[:, None])
    return torch.from_numpy(np.tril(visible))
