"""The norm with a frozen weight: transformers' numbers, and a row's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from sweeper.engine.lora_net import LoraNet
from sweeper.engine.norm import FrozenNorm
from tests.engine.engine_world import World


def drawn_norm() -> LlamaRMSNorm:
    torch.manual_seed(0)
    theirs = LlamaRMSNorm(48, eps=1e-3)
    theirs.weight.data.normal_()
    return theirs.requires_grad_(False)


def test_values_and_gradients_are_those_of_transformers_layer() -> None:
    theirs = drawn_norm()
    x = torch.randn(1, 20, 48) * torch.logspace(-3, 3, 20)[:, None]  # where eps matters, and where it does not
    x[0, 3] = 0
    gradient = torch.randn(1, 20, 48)
    found = []
    for norm in (theirs, FrozenNorm(theirs.weight, 1e-3)):
        mine = x.clone().requires_grad_()
        y = norm(mine)
        y.backward(gradient)
        found.append((y.detach(), mine.grad))
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-5)


def test_a_row_has_the_same_bits_among_any_number_of_others() -> None:
    norm = FrozenNorm(drawn_norm().weight, 1e-3)
    rows, gradient = torch.randn(2, 300, 48).unbind()

    def run(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = rows[:count].clone().requires_grad_()
        y = norm(x)
        y.backward(gradient[:count])
        assert x.grad is not None
        return y.detach()[:1], x.grad[:1]

    for count in (2, 16, 17, 300):
        assert all(torch.equal(a, b) for a, b in zip(run(1), run(count), strict=True))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_no_norm_of_transformers_is_left_in_a_packed_net(make_world: Callable[..., World], family: str) -> None:
    net = LoraNet(make_world(family).setup())
    left = {type(module).__name__ for module in net.packed.model.modules() if "Norm" in type(module).__name__}
    assert left == {"FrozenNorm"}
