"""Attention in which a row sees only itself, at its own length.

Registered with transformers under NAME, as attention *and* as mask: with an attention alone transformers passes no mask and
packed rows leak into each other without a word. Runs torch's scaled dot product attention once per span of equal rows; a row's
result therefore depends neither on its neighbours nor on padding. Decoding keeps keys and values in a `RowCache`, per row.
Knows nothing of trials. Cost: one kernel a span and layer; the CPU has no variable-length kernel with a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from sweeper.engine.layout import Current, Layout

NAME = "sweeper_packed"


class RowCache:
    """Keys and values of rows that are being decoded: per layer and row [Hkv, capacity, D]. `lengths` counts what is stored."""

    def __init__(self, capacities: Sequence[int]) -> None:
        self._capacities = list(capacities)
        self._stored: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.lengths = [0] * len(self._capacities)
        self.active = list(range(len(self._capacities)))  # rows of the next layout, in its order

    def append(self, layer: int, row: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores key and value [Hkv, L, D] after what is stored of `row`; returns all of them [Hkv, stored + L, D]."""
        stored = self._stored.get((layer, row))
        if stored is None:
            shape = (key.shape[0], self._capacities[row], key.shape[2])
            stored = self._stored[layer, row] = (key.new_empty(shape), value.new_empty(shape))
        begin = self.lengths[row]
        end = begin + key.shape[1]
        stored[0][:, begin:end] = key
        stored[1][:, begin:end] = value
        return stored[0][:, :end], stored[1][:, :end]

    def advance(self, tokens: Sequence[int]) -> None:
        """Every layer has stored `tokens[i]` more tokens of active row i."""
        for row, count in zip(self.active, tokens, strict=True):
            self.lengths[row] += count


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """query [1, H, T, D], key and value [1, Hkv, T, D] -> [1, T, H, D]. `module.current` says which rows they are."""
    current: Any = module.current
    layout: Layout = current.require()
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    # One split has one backward; a slice for each span would fill a whole tensor for each.
    sizes = [span.rows * span.length for span in layout.spans]
    pieces = list(zip(*(torch.split(x.squeeze(0), sizes, dim=1) for x in (query, key, value)), strict=True))
    out: list[Tensor] = []
    row = 0
    for span, piece in zip(layout.spans, pieces, strict=True):
        parts = [torch.unflatten(x, 1, (span.rows, span.length)).transpose(0, 1) for x in piece]
        if span.after is not None:
            parts[1:] = (_behind(x, own) for x, own in zip(pieces[span.after][1:], parts[1:], strict=True))
        if layout.cache is not None and row < len(layout.cache.active):
            out.append(_cached(layout, layer, row, parts, scaling))
        else:
            q_, k_, v_ = parts
            out.append(_attend(q_, k_, v_, span.mask, span.mask is None, dropout, scaling))
        row += span.rows
    result = torch.cat([x.transpose(1, 2).flatten(0, 1) for x in out])
    return result[None], None


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float, scaling: float | None) -> Tensor:
    """[R, H, L, D] for queries [R, H, L, D], keys and values [R, Hkv, M, D]."""
    shared = q.shape[1] // k.shape[1]
    if shared > 1 and q.is_cuda:  # the one kernel there that takes fp32 without L x M numbers in memory takes no groups of heads
        k, v = (torch.repeat_interleave(x, shared, dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )


def _behind(shared: Tensor, own: Tensor) -> Tensor:
    """[R, Hkv, S + L, D]: keys or values [Hkv, S, D] of tokens that rows share before those of each row [R, Hkv, L, D]."""
    return torch.cat([shared.expand(own.shape[0], *shared.shape), own], dim=2)


def _cached(layout: Layout, layer: int, first: int, parts: list[Tensor], scaling: float | None) -> Tensor:
    """A span's rows one by one: each has stored another number of tokens."""
    assert layout.cache is not None
    q, k, v = parts
    out: list[Tensor] = []
    for i in range(q.shape[0]):
        keys, values = layout.cache.append(layer, layout.cache.active[first + i], k[i], v[i])
        out.append(_attend(q[i : i + 1], keys[None], values[None], None, q.shape[2] > 1, 0.0, scaling))
    return torch.cat(out)


def _no_mask(*_: Any, **__: Any) -> None:
    """The layout alone says who sees whom."""


def attach(model: nn.Module, current: Current) -> None:
    """Tells every attention layer of `model` where its layout is to be found."""
    for module in model.modules():
        if hasattr(module, "layer_idx") and hasattr(module, "scaling"):
            module.current = current  # type: ignore[assignment]


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
