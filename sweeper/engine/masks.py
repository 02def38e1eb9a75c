"""LoRA's dropout masks: bytes, drawn from a seed that belongs to trial, chunk and input.

A mask is that of an *input*: layers that read the same one (queries, keys and values; gate and up) drop out the same numbers of it,
so it is drawn and applied once for all of them. (peft draws a mask for each layer; a number is kept as often either way.)
Bytes take an eighth of F.dropout's time, so the probability is rounded to a 256th. Each trial draws its own rows of one mask; what
is done with it, number by number, is done for all trials at once.
Knows no layers. Cost: 0.6 ns to draw a number (one core), and a copy in floats at each use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout_level(probability: float) -> int:
    """`probability` in 256ths, never 0 where it is above 0 and never all."""
    return 0 if probability <= 0 else min(255, max(1, round(probability * 256)))


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


def add_kept(dx: Tensor, back: Tensor, kept: Tensor, drops: Sequence[Drop]) -> None:
    """Adds `back` where it was kept to the rows of `dx` that dropped out; all at once if every row did."""
    if sum(drop.end - drop.start for drop in drops) == dx.shape[0]:
        dx.add_(back.mul_(kept))
        return
    for drop in drops:
        rows = slice(drop.start, drop.end)
        dx[rows].add_(back[rows].mul_(kept[rows]))
