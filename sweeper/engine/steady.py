"""Whether a row's result depends on its neighbours here: what "the same numbers packed or alone" rests on.

A matrix library chooses how it sums by the shape of a product, so a row may come out otherwise among 16 rows than among 100. From
MIN_ROWS rows on it does not on the processors this was measured on; on each other one it is looked at when the first engine starts
there, for the model's own shapes. Elementwise functions take whole vectors and then a rest one by one, which rounds otherwise:
`spare_rows` says how many rows of filler keep that rest out of every trial.
Knows products alone. Cost: 0.5 s for 135M parameters on one core, most of it the head's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from sweeper.engine.frozen import FrozenLinear
from sweeper.engine.layout import MIN_ROWS

VECTOR = 32  # numbers that an elementwise function takes at once: two registers of 512 bits in fp32
_SIZES = (MIN_ROWS, MIN_ROWS + 1, 23, 31, 33, 64)
_ROWS = 96


def spare_rows(widths: Iterable[int]) -> int:
    """Rows of filler that hold the last VECTOR - 1 numbers of any tensor [T, width]; none where all widths are whole vectors."""
    return max((math.ceil((VECTOR - 1) / width) for width in widths if width % VECTOR), default=0)


@torch.no_grad()
def is_steady(linears: Iterable[FrozenLinear], head: Tensor) -> bool:
    """Whether each row of the products with these layers, and with the head's weight [V, d], is the same bits among any number of
    rows from MIN_ROWS on and at any place among them, forward and for the gradient."""
    seen: dict[tuple[type, int, int], FrozenLinear] = {}
    for linear in linears:
        seen.setdefault((type(linear), linear.out_features, linear.in_features), linear)
    draw = torch.Generator().manual_seed(0)

    def rows(width: int) -> Tensor:
        return torch.randn(_ROWS, width, generator=draw).to(head.device)

    for linear in seen.values():
        if not (_same(linear.forward, rows(linear.in_features)) and _same(linear.input_gradient, rows(linear.out_features))):
            return False
    return _same(lambda x: F.linear(x.to(head.dtype), head), rows(head.shape[1]))


def _same(product: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    whole = product(x)
    places = [(0, count) for count in _SIZES] + [(_ROWS - MIN_ROWS, _ROWS), (7, 7 + MIN_ROWS)]
    return all(torch.equal(product(x[begin:end]), whole[begin:end]) for begin, end in places)
