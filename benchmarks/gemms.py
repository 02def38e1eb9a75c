"""The least that a pass over a model can cost: its frozen matrix products alone, as fast as torch runs them here.

For each linear layer y = x W^T forward and dx = dy W backward, and for the head logits and dhidden at predicted positions; the
first layer's query, key and value need no gradient of their input. Left out: low-rank updates, attention, norms, activations,
losses, optimizer. Each layer has its own weight, as in the model, so that weights come from memory and not from a cache. A
product is tried as torch has it and with the weight laid out the other way; the faster form counts.
Knows shapes, no model. Cost: the products, a few times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import median
from benchmarks.sides import synchronise


@dataclass(frozen=True)
class Shapes:
    """Linear layers as (out, in), in model order, the head's among none of them; `blind` layers need no input gradient."""

    layers: tuple[tuple[int, int], ...]
    blind: int
    head: tuple[int, int]


@dataclass(frozen=True)
class Floor:
    """Seconds of bare products for `rows` rows: forward, input gradient, and the head's logits and dhidden for `rows` positions."""

    rows: int
    forward: float
    backward: float
    logits: float
    dhidden: float


def shapes(model: str) -> Shapes:
    """Of a model folder, without reading its weights."""
    from sweeper.engine.model import linear_names, load_config, skeleton

    net = skeleton(load_config(model))
    found = [tuple(net.get_submodule(name).weight.shape) for name in linear_names(net)]
    head = tuple(net.get_output_embeddings().weight.shape)
    names = linear_names(net)
    fused = sum("query_key_value" in name for name in names[:1])
    return Shapes(tuple((int(a), int(b)) for a, b in found), 1 if fused else 3, (int(head[0]), int(head[1])))


class Products:
    """All the layers' products on one device, in one dtype."""

    def __init__(self, which: Shapes, dtype: str, device: str) -> None:
        self._shapes = which
        self._device = device
        self._dtype = torch.float32 if dtype == "fp32" else torch.bfloat16
        self._weights = [torch.randn(shape, device=device).to(self._dtype) for shape in which.layers]
        self._head = torch.randn(which.head, device=device)  # the engine's head is fp32 in either dtype
        self._turned: dict[int, Tensor] = {}

    def floor(self, rows: int, repeats: int = 3) -> Floor:
        """Medians over `repeats` of each product, best form of two."""
        inputs = {n: torch.randn(rows, n, device=self._device).to(self._dtype) for shape in self._shapes.layers for n in shape}
        pairs = list(zip(self._weights, self._shapes.layers, strict=True))
        hidden, errors = (torch.randn(rows, n, device=self._device) for n in reversed(self._shapes.head))
        self._turned = {id(w): w.t().contiguous() for w in self._weights}

        def forward(turned: bool) -> None:
            for weight, (_, width) in pairs:
                if turned:
                    torch.mm(inputs[width], self._turned[id(weight)])
                else:
                    F.linear(inputs[width], weight)

        def backward(turned: bool) -> None:
            for weight, (out, _) in pairs[self._shapes.blind :]:
                if turned:
                    F.linear(inputs[out], self._turned[id(weight)])
                else:
                    torch.mm(inputs[out], weight)

        found = [min(self._seconds(partial(call, turned), repeats) for turned in (False, True)) for call in (forward, backward)]
        self._turned = {}
        found += [self._seconds(lambda: F.linear(hidden, self._head), repeats)]
        found += [self._seconds(lambda: torch.mm(errors, self._head), repeats)]
        return Floor(rows, *found)

    def _seconds(self, call: Callable[[], object], repeats: int) -> float:
        call()
        taken: list[float] = []
        for _ in range(repeats):
            synchronise(self._device)
            began = time.perf_counter()
            call()
            synchronise(self._device)
            taken.append(time.perf_counter() - began)
        return median(taken)


@dataclass(frozen=True)
class Work:
    """What was trained and read: tokens through the layers, and predicted positions through the head."""

    trained: int
    predicted: int
    read: int
    scored: int

    def seconds(self, floors: Sequence[Floor]) -> float:
        """Of the bare products of all of it, each part at the row count that is best for it."""
        forward = min(f.forward / f.rows for f in floors)
        backward = min(f.backward / f.rows for f in floors)
        logits = min(f.logits / f.rows for f in floors)
        dhidden = min(f.dhidden / f.rows for f in floors)
        return (
            (self.trained + self.read) * forward
            + self.trained * backward
            + (self.predicted + self.scored) * logits
            + (self.predicted * dhidden)
        )
