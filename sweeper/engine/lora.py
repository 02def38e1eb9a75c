"""LoRA (Hu et al. 2021) for many trials on one frozen weight.

    y = x W^T + b   and, on the tokens of each trial k that has an adapter here,   y_k += s_k (drop_k(x_k) A_k^T) B_k^T

The frozen product runs once for all tokens; the low-rank updates run at each segment's own length and each trial's own rank, so
that nothing a trial computes depends on its neighbours. The backward pass adds each trial's gradient into its own flat fp32 row,
past autograd: nothing is zeroed, cast or copied between chunks.
Dropout masks are bytes (a fifth of F.dropout's time), so the probability is rounded to a 256th, and drawn from a seed that
belongs to trial, chunk and layer: a recomputed layer draws the same mask.
Thin products are written with the rank in front ([r, n], not [n, r]): up to rank 12 that takes half the time on a CPU, from 16 on
as much.
Knows nothing of trials' budgets or of transformers. Cost over the frozen product: 3 thin products a layer and pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sweeper.engine.frozen import FrozenLinear
from sweeper.engine.layout import Current, Segment
from sweeper.engine.seeds import mix


@dataclass(frozen=True)
class Adapter:
    """One trial's update of one layer: `down` A [r, in], `up` B [out, r] and their gradients, all fp32."""

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


def keep_mask(shape: tuple[int, int], level: int, seed: int, device: torch.device) -> Tensor:
    """bool [n, in], True with probability 1 - level / 256."""
    generator = torch.Generator(device=device).manual_seed(seed)
    count = shape[0] * shape[1]
    words = torch.randint(-(2**63), 2**63 - 1, (-(-count // 8),), generator=generator, device=device)
    return (words.view(torch.uint8)[:count] >= level).view(shape)


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
        lows: list[Tensor] = []
        masks: list[Tensor | None] = []
        for segment in segments:
            adapter = layer.adapters[segment.slot]
            part = x[segment.start : segment.end]
            mask = _mask(adapter, segment, layer.index, part)
            low = torch.mm(adapter.down, (part if mask is None else part * mask).t())
            low *= _gain(adapter, mask)
            y[segment.start : segment.end].addmm_(low.t(), adapter.up.t())
            lows.append(low)
            masks.append(mask)
        ctx.save_for_backward(x, *lows, *masks)
        ctx.layer, ctx.segments = layer, segments
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, None, None, None]:
        dy = gradients[0]
        layer: LoraLinear = ctx.layer
        segments: list[Segment] = ctx.segments
        x, *saved = ctx.saved_tensors
        lows, masks = saved[: len(segments)], saved[len(segments) :]
        dx = layer.frozen.input_gradient(dy) if ctx.needs_input_grad[0] else None
        for segment, low, mask in zip(segments, lows, masks, strict=True):
            adapter = layer.adapters[segment.slot]
            part, dpart = x[segment.start : segment.end], dy[segment.start : segment.end]
            dlow = torch.mm(adapter.up.t().contiguous(), dpart.t())
            dlow *= _gain(adapter, mask)
            adapter.up_gradient.add_(torch.mm(low, dpart).t())
            adapter.down_gradient.addmm_(dlow, part if mask is None else part * mask)
            if dx is not None and mask is None:
                dx[segment.start : segment.end].addmm_(dlow.t(), adapter.down)
            elif dx is not None:
                dx[segment.start : segment.end] += torch.mm(dlow.t(), adapter.down) * mask
        return dx, None, None, None


def _mask(adapter: Adapter, segment: Segment, index: int, part: Tensor) -> Tensor | None:
    if segment.seed is None or adapter.dropout == 0:
        return None
    return keep_mask((part.shape[0], part.shape[1]), adapter.dropout, mix(segment.seed, index), part.device)


def _gain(adapter: Adapter, mask: Tensor | None) -> float:
    """alpha / rank, and what dropout takes away."""
    return adapter.scale if mask is None else adapter.scale / (1 - adapter.dropout / 256)
