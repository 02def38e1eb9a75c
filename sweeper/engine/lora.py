"""LoRA (Hu et al. 2021) for many trials on one frozen weight.

    y = x W^T + b   and, on the tokens of each trial k that has an adapter here,   y_k += s_k (drop_k(x_k) A_k^T) B_k^T

The frozen product runs once for all tokens; the low-rank updates run at each segment's own length and each trial's own rank, so
that nothing a trial computes depends on its neighbours. The backward pass adds each trial's gradient into its own flat fp32 row,
past autograd: nothing is zeroed, cast or copied between chunks.
Dropout masks are bytes (an eighth of F.dropout's time), so the probability is rounded to a 256th, and drawn from a seed that
belongs to trial, chunk and layer: a recomputed layer draws the same mask. Each trial draws its own rows of one mask; what is
done with it, number by number, is done for all trials at once.
Thin products are written with the rank in front ([r, n], not [n, r]): up to rank 12 that takes half the time on a CPU, from 16 on
as much. B is therefore kept as it is read, [r, out], and its gradient is added where it lies. One torch.bmm for
segments of equal length and rank gave the same bits and took half as long as the products it stood for, but is left out:
adapters would have to be gathered, and gradients spread, for every layer, and these products are an eighth of a pass.
Knows nothing of trials' budgets or of transformers. Cost over the frozen product: 3 thin products a layer and pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweeper.engine.frozen import FrozenLinear
from sweeper.engine.layout import Current, Segment
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


def dropout_level(probability: float) -> int:
    """`probability` in 256ths, never 0 where it is above 0 and never all."""
    return 0 if probability <= 0 else min(255, max(1, round(probability * 256)))


def initial_bound(inputs: int) -> float:
    """Half width of A's uniform start: kaiming_uniform_(a=sqrt(5)), as in peft."""
    return 1 / math.sqrt(inputs)


@dataclass(frozen=True)
class Drop:
    """Rows [start, end) drop out numbers with probability `level` / 256, drawn from `seed`."""

    start: int
    end: int
    level: int  # 1 to 255
    seed: int


def keep_mask(rows: int, inputs: int, drops: Sequence[Drop], device: torch.device) -> Tensor:
    """uint8 [rows, inputs], 1 with probability 1 - level / 256, else 0; rows that drop nothing out are undefined.

    Made of bytes throughout: to compare into bools, and to multiply by them, takes six times as long on a CPU.
    """
    words = torch.empty(rows, -(-inputs // 8), dtype=torch.int64, device=device)
    drawn = words.view(torch.uint8)
    generator = torch.Generator(device=device)
    for drop in drops:
        words[drop.start : drop.end].random_(-(2**63), 2**63 - 1, generator=generator.manual_seed(drop.seed))
        F.threshold(drawn[drop.start : drop.end], drop.level - 1, 0, inplace=True)
    return drawn.clamp_(max=1)[:, :inputs]


class LoraLinear(nn.Module):
    """Stands where a linear layer stood. `adapters` maps a slot to the adapter of the trial in it; `index` seeds its masks."""

    def __init__(self, frozen: FrozenLinear, current: Current, index: int, anchor: Tensor) -> None:
        super().__init__()
        self.frozen = frozen
        self.index = index
        self.adapters: dict[int, Adapter] = {}
        self._current = current
        self._anchor = anchor

    def forward(self, x: Tensor) -> Tensor:
        """x [1, T, in] -> [1, T, out]."""
        segments = [s for s in self._current.require().segments if s.slot in self.adapters]
        # Below the lowest adapter nothing needs a gradient, and the backward pass ends there.
        anchor = self._anchor if segments else None
        # A view both ways, where x[0] would fill and copy a tensor in its backward pass.
        out: Tensor = _LoraFunction.apply(x.squeeze(0), anchor, self, segments)  # type: ignore[no-untyped-call]
        return out[None]


class _LoraFunction(torch.autograd.Function):
    """The anchor is an empty tensor that needs a gradient: without it the first layer, whose input needs none, has no backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor | None, layer: LoraLinear, segments: list[Segment]) -> Tensor:
        y = layer.frozen.forward(x)
        drops = _drops(layer, segments)
        keep = keep_mask(x.shape[0], x.shape[1], list(drops.values()), x.device) if drops else None
        dropped = x if keep is None else x * keep.to(x.dtype)
        lows: list[Tensor] = []
        for segment in segments:
            adapter, drop = layer.adapters[segment.slot], segment.start in drops
            low = torch.mm(adapter.down, (dropped if drop else x)[segment.start : segment.end].t())
            y[segment.start : segment.end].addmm_(low.t(), adapter.up, alpha=_gain(adapter, drop))
            lows.append(low)
        ctx.save_for_backward(x, keep, *lows)
        ctx.layer, ctx.segments, ctx.drops = layer, segments, drops
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, None, None, None]:
        dy = gradients[0]
        layer: LoraLinear = ctx.layer
        drops: dict[int, Drop] = ctx.drops
        x, keep, *lows = ctx.saved_tensors
        dx = layer.frozen.input_gradient(dy) if ctx.needs_input_grad[0] else None
        kept = None if keep is None else keep.to(x.dtype)
        dropped = x if kept is None else x * kept
        back = torch.empty_like(x) if kept is not None and dx is not None else None
        for segment, low in zip(ctx.segments, lows, strict=True):
            adapter, rows = layer.adapters[segment.slot], slice(segment.start, segment.end)
            drop = segment.start in drops
            gain, dpart = _gain(adapter, drop), dy[rows]
            dlow = torch.mm(adapter.up, dpart.t())
            adapter.up_gradient.addmm_(low, dpart, alpha=gain)
            adapter.down_gradient.addmm_(dlow, (dropped if drop else x)[rows], alpha=gain)
            if dx is not None and not drop:
                dx[rows].addmm_(dlow.t(), adapter.down, alpha=gain)
            elif back is not None:
                torch.addmm(back[rows], dlow.t(), adapter.down, beta=0, alpha=gain, out=back[rows])
        if dx is not None and back is not None and kept is not None:
            _add_kept(dx, back, kept, list(drops.values()))
        return dx, None, None, None


def _drops(layer: LoraLinear, segments: Sequence[Segment]) -> dict[int, Drop]:
    """The segments that drop out here, by their first row."""
    return {
        s.start: Drop(s.start, s.end, layer.adapters[s.slot].dropout, mix(s.seed, layer.index))
        for s in segments
        if s.seed is not None and layer.adapters[s.slot].dropout > 0
    }


def _add_kept(dx: Tensor, back: Tensor, kept: Tensor, drops: Sequence[Drop]) -> None:
    """Adds `back` where it was kept to the rows of `dx` that dropped out; all at once if every row did."""
    if sum(drop.end - drop.start for drop in drops) == dx.shape[0]:
        dx.add_(back.mul_(kept))
        return
    for drop in drops:
        rows = slice(drop.start, drop.end)
        dx[rows].add_(back[rows].mul_(kept[rows]))


def _gain(adapter: Adapter, drop: bool) -> float:
    """alpha / rank, and what dropout takes away."""
    return adapter.scale / (1 - adapter.dropout / 256) if drop else adapter.scale
