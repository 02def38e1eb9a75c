"""LoRA (Hu et al. 2021) for many trials on one frozen weight, and for all layers that read the same input.

    y = x W^T + b   and, on the tokens of each trial k that has an adapter here,   y_k += s_k (drop_k(x_k) A_k^T) B_k^T

The frozen product runs once for all tokens; the low-rank updates run at each segment's own length and each trial's own rank, so
that nothing a trial computes depends on its neighbours. The backward pass adds each trial's gradient into its own flat fp32 row,
past autograd: nothing is zeroed, cast or copied between chunks.
Queries, keys and values read one input, and so do gate and up: the first of them that is called computes all, the others find
theirs. The input is then dropped out (`masks.py`; a recomputed layer draws the same mask) and multiplied by a trial's A once: with
dropout a pass of 275 tokens takes 2 to 6 % less (one core), without it as long.
Thin products are written with the rank in front ([r, n], not [n, r]): up to rank 12 that takes half the time on a CPU, from 16 on
as much. B is therefore kept as it is read, [r, out], and its gradient is added where it lies. One torch.bmm for
segments of equal length and rank gave the same bits and took half as long as the products it stood for, but is left out:
adapters would have to be gathered, and gradients spread, for every layer, and these products are an eighth of a pass.
Knows nothing of trials' budgets or of transformers. Cost over the frozen product: 3 thin products a layer and pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sweeper.engine.frozen import FrozenLinear
from sweeper.engine.layout import Current
from sweeper.engine.masks import Drop, add_kept, keep_mask
from sweeper.engine.seeds import mix


@dataclass(frozen=True)
class Adapter:
    """One trial's update of one layer: `down` A [r, in], `up` B's transpose [r, out] and their gradients, all fp32."""

    down: Tensor
    up: Tensor
    down_gradient: Tensor
    up_gradient: Tensor
    scale: float
    dropout: int  # of 256


def initial_bound(inputs: int) -> float:
    """Half width of A's uniform start: kaiming_uniform_(a=sqrt(5)), as in peft."""
    return 1 / math.sqrt(inputs)


class LoraLinear(nn.Module):
    """Stands where a linear layer stood. `adapters` maps a slot to the adapter of the trial in it."""

    def __init__(self, frozen: FrozenLinear) -> None:
        super().__init__()
        self.frozen = frozen
        self.adapters: dict[int, Adapter] = {}
        self.group: Group | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [1, T, in] -> [1, T, out]."""
        assert self.group is not None
        return self.group.output(self, x)


class Group:
    """Layers that read the same input; one that reads another than the rest is right as well, and costs the work of all.

    `index` seeds their masks. `anchor` is an empty tensor that needs a gradient: without it the first layer, whose input needs
    none, has no backward.
    """

    def __init__(self, layers: Sequence[LoraLinear], current: Current, index: int, anchor: Tensor) -> None:
        self.layers = tuple(layers)
        self.index = index
        self._current = current
        self._anchor = anchor
        for layer in layers:
            layer.group = self

    def output(self, layer: LoraLinear, x: Tensor) -> Tensor:
        """What `layer` makes of x; handed out once."""
        read, ahead = self._current.ahead.pop(self, (None, {}))
        if read is not x or layer not in ahead:
            pieces = self._pieces()
            # Below the lowest adapter nothing needs a gradient, and the backward pass ends there.
            anchor = self._anchor if pieces else None
            # A view both ways, where x[0] would fill and copy a tensor in its backward pass.
            out: tuple[Tensor, ...] = _LoraFunction.apply(x.squeeze(0), anchor, self, pieces)  # type: ignore[no-untyped-call]
            ahead = dict(zip(self.layers, out, strict=True))
        found: Tensor = ahead.pop(layer)
        if ahead:
            self._current.ahead[self] = x, ahead
        return found[None]

    def input_gradient(self, dys: Sequence[Tensor]) -> Tensor:
        """Of the frozen products: a new tensor [T, in] for each layer's dy [T, out]."""
        first, *others = (layer.frozen.input_gradient(dy) for layer, dy in zip(self.layers, dys, strict=True))
        for other in others:
            first.add_(other)
        return first

    def _pieces(self) -> list[_Piece]:
        pieces: list[_Piece] = []
        for segment in self._current.require().segments:
            here = {i: layer.adapters[segment.slot] for i, layer in enumerate(self.layers) if segment.slot in layer.adapters}
            if here:
                one = next(iter(here.values()))
                drop, gain = None, one.scale
                if segment.seed is not None and one.dropout > 0:
                    drop = Drop(segment.start, segment.end, one.dropout, mix(segment.seed, self.index))
                    gain /= 1 - one.dropout / 256
                pieces.append(_Piece(slice(segment.start, segment.end), here, gain, drop))
        return pieces


@dataclass(frozen=True)
class _Piece:
    """A segment's rows, and its trial's adapters of a group's layers, by their places in it: alike in all but their numbers."""

    rows: slice
    adapters: dict[int, Adapter]
    gain: float  # alpha / rank, and what dropout takes away
    drop: Drop | None

    def down(self) -> Tensor:
        """Every A, one below the other [k r, in]."""
        return _joined([adapter.down for adapter in self.adapters.values()])

    def each(self, low: Tensor) -> Iterator[tuple[int, Adapter, Tensor]]:
        """The layer's place, its adapter, and its rows [r, n] of `low` [k r, n]."""
        parts = torch.split(low, low.shape[0] // len(self.adapters))
        yield from ((i, adapter, part) for (i, adapter), part in zip(self.adapters.items(), parts, strict=True))


class _LoraFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor | None, group: Group, pieces: list[_Piece]) -> tuple[Tensor, ...]:
        out = tuple(layer.frozen.forward(x) for layer in group.layers)
        drops = [piece.drop for piece in pieces if piece.drop is not None]
        keep = keep_mask(x.shape[0], x.shape[1], drops, x.device) if drops else None
        dropped = x if keep is None else x * keep.to(x.dtype)
        lows: list[Tensor] = []
        for piece in pieces:
            low = torch.mm(piece.down(), (x if piece.drop is None else dropped)[piece.rows].t())
            for i, adapter, part in piece.each(low):
                out[i][piece.rows].addmm_(part.t(), adapter.up, alpha=piece.gain)
            lows.append(low)
        ctx.save_for_backward(x, keep, *lows)
        ctx.group, ctx.pieces = group, pieces
        return out

    @staticmethod
    def backward(ctx: Any, *dys: Any) -> tuple[Tensor | None, None, None, None]:
        group: Group = ctx.group
        pieces: list[_Piece] = ctx.pieces
        x, keep, *lows = ctx.saved_tensors
        dx = group.input_gradient(dys) if ctx.needs_input_grad[0] else None
        kept = None if keep is None else keep.to(x.dtype)
        dropped = x if kept is None else x * kept
        back = torch.empty_like(x) if kept is not None and dx is not None else None
        for piece, low in zip(pieces, lows, strict=True):
            rows, gain, read = piece.rows, piece.gain, x if piece.drop is None else dropped
            dlows: list[Tensor] = []
            for i, adapter, part in piece.each(low):
                dpart = dys[i][rows]
                dlow = torch.mm(adapter.up, dpart.t())
                adapter.up_gradient.addmm_(part, dpart, alpha=gain)
                adapter.down_gradient.addmm_(dlow, read[rows], alpha=gain)
                dlows.append(dlow)
            if dx is not None and piece.drop is None:
                dx[rows].addmm_(_joined(dlows).t(), piece.down(), alpha=gain)
            elif back is not None:
                torch.addmm(back[rows], _joined(dlows).t(), piece.down(), beta=0, alpha=gain, out=back[rows])
        if dx is not None and back is not None and kept is not None:
            add_kept(dx, back, kept, [piece.drop for piece in pieces if piece.drop is not None])
        return dx, None, None, None


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
