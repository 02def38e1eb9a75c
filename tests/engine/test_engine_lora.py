"""Layers that read one input, and attention of rows, held to the same arithmetic done plainly, with autograd's own gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweeper.engine.attention import packed_attention
from sweeper.engine.frozen import freeze
from sweeper.engine.layout import Current, Part, RowInput, build
from sweeper.engine.lora import Adapter, Group, LoraLinear
from sweeper.engine.masks import Drop, keep_mask
from sweeper.engine.seeds import mix

IN, OUTS, RANKS, LEVEL, GROUP = 32, (48, 16, 24), (4, 3), 77, 5


def rows_of(*lengths: int) -> list[RowInput]:
    return [RowInput(np.arange(1, length + 1, dtype=np.int32)) for length in lengths]


def adapter(rank: int, out: int, dropout: int) -> Adapter:
    return Adapter(torch.randn(rank, IN), torch.randn(rank, out), torch.zeros(rank, IN), torch.zeros(rank, out), 0.5, dropout)


def group_of(current: Current, dropout: int) -> list[LoraLinear]:
    """Three layers that read one input: the trial in slot 0 has adapters in the first and the third, that in slot 1 in all."""
    torch.manual_seed(0)
    layers = [LoraLinear(freeze(nn.Linear(IN, out), "full")) for out in OUTS]
    Group(layers, current, GROUP, torch.empty(0, requires_grad=True))
    for i, layer in enumerate(layers):
        if i != 1:
            layer.adapters[0] = adapter(RANKS[0], OUTS[i], dropout)
        layer.adapters[1] = adapter(RANKS[1], OUTS[i], 0)
    return layers


def plainly(layer: LoraLinear, x: Tensor, keep: Tensor, dropout: int) -> tuple[Tensor, list[Tensor]]:
    """What the layer gives, and leaves for autograd: A and B of slot 0 on the first 20 rows, of slot 1 on the next ten."""
    frozen = layer.frozen
    y, leaves = frozen.forward(x.detach()) + (x - x.detach()) @ frozen.weight.t(), []  # type: ignore[attr-defined]
    parts = [y[:20], y[20:30], y[30:]]
    for slot, rows in ((0, slice(0, 20)), (1, slice(20, 30))):
        if slot in layer.adapters:
            mine = layer.adapters[slot]
            down, up = mine.down.clone().requires_grad_(), mine.up.clone().requires_grad_()
            read = x[rows] * keep[rows] / (1 - dropout / 256) if slot == 0 else x[rows]
            parts[slot] = parts[slot] + mine.scale * (read @ down.t()) @ up
            leaves += [down, up]
    return torch.cat(parts), leaves


@pytest.mark.parametrize("dropout", [0, LEVEL])
def test_layers_that_read_one_input_give_what_each_gives_alone(dropout: int) -> None:
    current = Current()
    layers = group_of(current, dropout)
    layout = build([Part(0, rows_of(11, 9), seed=3), Part(1, rows_of(10), seed=4), Part(2, rows_of(4), seed=5)], "cpu")
    total = len(layout.ids)
    keep = torch.ones(total, IN)
    if dropout:
        keep[:20] = keep_mask(total, IN, [Drop(0, 20, dropout, mix(3, GROUP))], torch.device("cpu"))[:20].float()
        assert 0.5 < keep[:20].mean() < 0.9
    x, weights = torch.randn(total, IN, requires_grad=True), [torch.randn(total, out) for out in OUTS]
    with current.at(layout):
        read = x[None] * 1  # one tensor, which all three are called with
        mine = [layer(read)[0] for layer in layers]
        sum((y * w).sum() for y, w in zip(mine, weights, strict=True)).backward()  # type: ignore[union-attr]
    found, x.grad = x.grad, None
    plain = [plainly(layer, x, keep, dropout) for layer in layers]
    sum((y * w).sum() for (y, _), w in zip(plain, weights, strict=True)).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(found, x.grad, rtol=1e-4, atol=1e-4)
    for layer, y, (expected, leaves) in zip(layers, mine, plain, strict=True):
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        gradients = [g for _, one in sorted(layer.adapters.items()) for g in (one.down_gradient, one.up_gradient)]
        for gradient, leaf in zip(gradients, leaves, strict=True):
            torch.testing.assert_close(gradient, leaf.grad, rtol=1e-4, atol=1e-4)


def test_a_layer_that_reads_another_input_than_those_beside_it_gives_what_it_should() -> None:
    current = Current()
    first, _, third = group_of(current, 0)
    with current.at(build([Part(0, rows_of(20))], "cpu")), torch.no_grad():
        x, other = torch.randn(1, 20, IN), torch.randn(1, 20, IN)
        expected = third(other)
        first(x)
        assert torch.equal(third(other), expected)
        assert not torch.equal(third(x), expected)
        assert torch.equal(third(x), third(x)), "asked again, it is computed again"


def test_nothing_is_kept_for_a_layer_that_never_asked() -> None:
    current = Current()
    first, *_ = group_of(current, 0)
    with current.at(build([Part(0, rows_of(20))], "cpu")):
        first(torch.randn(1, 20, IN))
        assert current.ahead
    assert not current.ahead


@pytest.mark.parametrize("shared", [0, 3])
def test_a_row_attends_to_what_is_shared_and_to_itself(shared: int) -> None:
    lengths = (9, 9, 14, 6)
    layout = build([Part(0, rows_of(*lengths), shared=shared), Part(1, rows_of(5))], "cpu")
    torch.manual_seed(0)
    total = len(layout.ids)
    q, k, v = (torch.randn(1, heads, total, 16, requires_grad=True) for heads in (4, 2, 2))
    module, weight = nn.Module(), torch.randn(total, 4, 16)
    module.current, module.layer_idx = Current(layout), 0  # type: ignore[assignment]
    mine = packed_attention(module, q, k, v, None, scaling=0.3)[0][0]
    (mine * weight).sum().backward()
    found = [x.grad for x in (q, k, v)]
    q.grad = k.grad = v.grad = None
    expected = torch.zeros(total, 4, 16)
    for row, (start, length) in enumerate(zip(layout.starts, (*lengths, 5), strict=True)):
        before = list(range(shared)) if row < len(lengths) else []
        places = torch.tensor(before + list(range(start + len(before), start + length)))
        one = F.scaled_dot_product_attention(
            q[:, :, places], k[:, :, places], v[:, :, places], is_causal=True, scale=0.3, enable_gqa=True
        )[0].transpose(0, 1)
        own = slice(0 if row == 0 else len(before), None)
        expected = expected.index_copy(0, places[own], one[own])
    counted = sum(lengths) - 3 * shared + 5
    torch.testing.assert_close(mine[:counted], expected[:counted], rtol=1e-4, atol=1e-5)
    weight[counted:] = 0
    (expected * weight).sum().backward()
    for gradient, x in zip(found, (q, k, v), strict=True):
        torch.testing.assert_close(gradient[:, :, :counted], x.grad[:, :, :counted], rtol=1e-4, atol=1e-5)
