"""How rows of several trials lie one after another in one micro-step, without padding.

    segment   neighbouring tokens of one trial's chunk: what an adapter is applied to
    span      neighbouring rows of equal length, of one trial or several: what attention runs on at once
    start     tokens that all rows of a part begin with: there once, before its rows, which attend to them
    filler    tokens of no trial at the end, so that a matrix product that trials share never has fewer than MIN_ROWS rows,
              below which a row's result depends on how many others there are (measured; `steady.py` looks whether it holds here),
              and `spare` of them where the last numbers of a tensor are computed otherwise than the rest

Attention and LoRA layers read the layout from a `Current` that the model holds, because transformers' layers pass nothing on.
Knows tensors but no model. Building one costs about 10 microseconds a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

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
    """Rows of one trial's chunk. `seed` of its dropout masks; None for no dropout. The first `shared` tokens are the same in all
    rows, and fewer than any row's tokens before its branches."""

    slot: int
    rows: Sequence[RowInput]
    seed: int | None = None
    shared: int = 0


@dataclass(frozen=True)
class Segment:
    """Tokens [start, end) of the layout belong to the trial in `slot`."""

    slot: int
    start: int
    end: int
    seed: int | None


@dataclass(frozen=True)
class Span:
    """`rows` rows of `length` tokens each from token `start` on; causal, or by `mask` (fp32 [length, M]; 0: sees, -inf: does not),
    where M is `length`, with the tokens of span number `after` before it, which stand before each row."""

    start: int
    rows: int
    length: int
    mask: Tensor | None = None
    after: int | None = None


@dataclass(frozen=True)
class Layout:
    """One micro-step: token ids and positions [T], and who they belong to. Token i of row r is at `starts[r] + i`, unless it is one
    of those that the rows of a part share."""

    ids: Tensor
    positions: Tensor
    segments: tuple[Segment, ...]
    spans: tuple[Span, ...]
    starts: tuple[int, ...]
    rows: tuple[RowInput, ...]
    cache: RowCache | None = None


@dataclass
class Current:
    """The layout being computed; None between micro-steps. `spare`: rows of filler that every layout has at least. `ahead`: what
    layers have computed for others, which may not have asked for it where a pass failed or was recomputed in part."""

    layout: Layout | None = None
    spare: int = 0
    ahead: dict[Any, Any] = field(default_factory=dict)

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
            if outer is None:
                self.ahead.clear()


def filler(rows: int, spare: int) -> int:
    """How many rows of filler follow `rows` rows, for products of at least MIN_ROWS and `spare` at the end."""
    return max(0, MIN_ROWS - rows, spare)


def build(parts: Sequence[Part], device: torch.device | str, cache: RowCache | None = None, spare: int = 0) -> Layout:
    """Concatenates the rows of `parts`, in order, with filler up to MIN_ROWS tokens, and at least `spare`."""
    ids: list[npt.NDArray[np.int32]] = []
    positions: list[npt.NDArray[np.int64]] = []
    segments: list[Segment] = []
    pieces: list[_Piece] = []
    starts: list[int] = []
    at = 0
    for part in parts:
        begin, shared = at, part.shared
        if shared:
            ids.append(part.rows[0].ids[:shared])
            positions.append(np.arange(shared))
            pieces.append(_Piece(at, shared, (), at, 0))
            at += shared
        for row in part.rows:
            ids.append(row.ids[shared:])
            positions.append(row.start + _positions(len(row.ids), row.branches)[shared:])
            starts.append(at - shared)
            pieces.append(_Piece(at, len(row.ids) - shared, row.branches, begin if shared else None, shared))
            at += len(row.ids) - shared
        segments.append(Segment(part.slot, begin, at, part.seed))
    spans = _spans(pieces, device)
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


@dataclass(frozen=True)
class _Piece:
    """Tokens of one row, or of the start that rows share: both know it by its token `start`, after which rows see `shared` more."""

    at: int
    length: int
    branches: tuple[int, ...]
    start: int | None
    shared: int


def _spans(pieces: Sequence[_Piece], device: torch.device | str) -> list[Span]:
    """Neighbouring pieces of one kind as a span each."""
    spans: list[Span] = []
    numbers: dict[int, int] = {}  # of the spans that are starts, by their first token
    for (length, branches, start, shared), group in groupby(pieces, key=lambda p: (p.length, p.branches, p.start, p.shared)):
        first, *others = group
        mask = _mask(length, branches, shared).to(device) if branches or shared else None
        after = numbers[start] if start is not None and shared else None
        if start == first.at:
            numbers[start] = len(spans)
        spans.append(Span(first.at, 1 + len(others), length, mask, after))
    return spans


def _positions(length: int, branches: tuple[int, ...]) -> npt.NDArray[np.int64]:
    stem = length - sum(branches)
    return np.concatenate([np.arange(stem), *(np.arange(stem, stem + branch) for branch in branches)]).astype(np.int64)


def _mask(length: int, branches: tuple[int, ...], shared: int) -> Tensor:
    """fp32 [length, shared + length], 0 or -inf: causal, no branch sees another, and all see what is shared.

    Attention would make it of bools, in every layer and for every span.
    """
    owner = np.zeros(length, np.int64)
    at = length - sum(branches)
    for number, branch in enumerate(branches, start=1):
        owner[at : at + branch] = number
        at += branch
    visible = (owner[None, :] == 0) | (owner[None, :] == owner[:, None])
    sees = np.concatenate([np.ones((length, shared), bool), np.tril(visible)], axis=1)
    return torch.from_numpy(np.where(sees, np.float32(0), np.float32(-np.inf)))
