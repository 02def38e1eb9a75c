"""`dtype: auto`: bf16 only where it is faster on this machine for this model, and learns as fp32 does.

Faster: the frozen products of the model's last layer (its own shapes, TOKENS tokens, forward and the input's gradient, casts
included, by the very classes that training uses) are timed in fp32 and bf16 in turns; bf16 must win by WORTH_IT, because only
about two thirds of a step are such products.
Learns as fp32 does: a few steps' losses are compared where it is faster (`agree.py`). In full fine-tuning weights themselves are
rounded to bf16, and steps at a learning rate of 1e-5 gained a third of what they gained in fp32, so auto is fp32 there.
Does not know trials or data. Cost: 0.2 s for 135M parameters on one core; some seconds for 8 billion.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from sweeper.engine.frozen import Dense, FrozenLinear, HalfDense
from sweeper.engine.model import linear_names

WORTH_IT = 1.3
TOKENS = 256  # a batch of eight sentences, or one text
_TURNS = 4  # the first warms up

Shape = tuple[int, int]  # out, in


@dataclass(frozen=True)
class Measured:
    """Seconds of one layer's products."""

    fp32: float
    bf16: float

    @property
    def ratio(self) -> float:
        """How many times faster bf16 is."""
        return self.fp32 / self.bf16

    @property
    def dtype(self) -> str:
        """What training should take."""
        return "bf16" if self.ratio >= WORTH_IT else "fp32"

    def __str__(self) -> str:
        return (
            f"one layer's products of {TOKENS} tokens took {self.bf16 * 1e3:.3g} ms in bf16 and {self.fp32 * 1e3:.3g} ms in fp32, "
            f"{self.ratio:.2f} times as long (bf16 is taken from {WORTH_IT} on)"
        )


def layer_shapes(model: Any) -> Counter[Shape]:
    """How often each shape of linear layer occurs in the last layer of `model` (which may be on the meta device)."""
    found = [(re.search(r"\.(\d+)\.", name), model.get_submodule(name)) for name in linear_names(model)]
    last = max((int(number[1]) for number, _ in found if number), default=None)
    layer = [module for number, module in found if last is None or (number and int(number[1]) == last)]
    return Counter(_shape(module) for module in layer)


def measure(shapes: Counter[Shape], device: str = "cpu", threads: int = 1) -> Measured:
    """Times a layer with linear layers of `shapes` on `device`; best of three after one to warm up."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fp32 = bf16 = 0.0
        for (out, into), count in shapes.items():
            a, b = _seconds(torch.rand(out, into, device=device) - 0.5)
            fp32, bf16 = fp32 + count * a, bf16 + count * b
        return Measured(fp32, bf16)
    finally:
        torch.set_num_threads(before)


def _shape(module: Any) -> Shape:
    first, second = module.weight.shape
    return (second, first) if isinstance(module, Conv1D) else (first, second)


def _seconds(weight: torch.Tensor) -> tuple[float, float]:
    """Best times of a product and its backward with `weight` in fp32 and in bf16, taken in turns."""
    out, into = weight.shape
    x, dy = (torch.rand(TOKENS, size, device=weight.device) - 0.5 for size in (into, out))
    kinds: tuple[FrozenLinear, ...] = (Dense(weight, None), HalfDense(weight.bfloat16(), None))
    turns = [[_time(kind, x, dy) for kind in kinds] for _ in range(_TURNS)][1:]
    return min(turn[0] for turn in turns), min(turn[1] for turn in turns)


def _time(linear: FrozenLinear, x: torch.Tensor, dy: torch.Tensor) -> float:
    _wait(x)
    began = time.perf_counter()
    linear.forward(x)
    linear.input_gradient(dy)
    _wait(x)
    return time.perf_counter() - began


def _wait(x: torch.Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
