"""The last layer, computed where something is predicted: the numbers of the whole layer, with gradients, whatever is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from sweeper.data.tokens import TokenRow
from sweeper.engine import packed
from sweeper.engine.lora_net import LoraNet
from sweeper.engine.packed import Chunk
from sweeper.engine.workload import default_params
from tests.engine.engine_world import LABEL_IDS, World

FAMILIES = ["llama", "qwen3", "gpt_neox"]


@contextmanager
def whole(backbone: Any, current: Any, layout: Any, places: torch.Tensor) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """In place of `last_layer_at`: every layer at every token, as transformers has it."""
    yield lambda hidden: hidden[places]


def passed(world: World, **training: Any) -> tuple[Any, ...]:
    """Losses, every trial's gradients, label scores and what is decoded, of two trials in one net."""
    net = LoraNet(world.setup(training=training, slots=2))
    params = default_params(world.setup(training=training).training)
    rows = [net.place(slot, params, seed=slot) for slot in range(2)]
    data = world.train
    for row in rows:
        row.weights.add_(0.02 * torch.randn(row.weights.shape, generator=torch.Generator().manual_seed(3)))
    chunks = [Chunk(slot, [data.row(5 * slot + i) for i in range(5)], 0.2, 0.1 * slot, seed=9) for slot in range(2)]
    losses = net.train(chunks)
    prompts = [(slot, [data.row(i).ids[: data.row(i).prompt] for i in range(4)]) for slot in range(2)]
    scores = net.score(prompts, LABEL_IDS)
    return torch.tensor(losses), *(row.gradient for row in rows), *map(torch.from_numpy, scores), net.decode(prompts, 4, None)


@pytest.mark.parametrize("training", [{}, {"gradient_checkpointing": True}, {"layers": "last 1"}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_gives_the_numbers_of_the_whole_layer(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, family: str, training: dict[str, Any]
) -> None:
    world = make_world(family)
    *mine, decoded = passed(world, **training)
    monkeypatch.setattr(packed, "last_layer_at", whole)
    *expected, sentences = passed(world, **training)
    for a, b in zip(mine, expected, strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert decoded == sentences


def tokens_seen(net: LoraNet, rows: Sequence[TokenRow]) -> tuple[list[float], dict[str, int]]:
    """The loss of training on `rows`, and how many tokens each linear layer gave."""
    seen: dict[str, int] = {}
    for path, layer in net._layers.items():
        layer.register_forward_hook(lambda _, x, y, path=path: seen.update({path: y.shape[1]}))
    return net.train([Chunk(0, rows, 0.2, 0.0, seed=9)]), seen


def placed(world: World) -> LoraNet:
    """A net with a trial in slot 0."""
    net = LoraNet(world.setup(slots=1))
    net.place(0, default_params(world.setup().training), seed=1)
    return net


@pytest.mark.parametrize("family", FAMILIES)
def test_its_products_run_where_something_is_predicted(make_world: Callable[..., World], family: str) -> None:
    """Five rows of up to 22 tokens with two or three labels each: filler up to 16 rows, and no other token."""
    world = make_world(family)
    rows = [world.train.row(i) for i in range(5)]
    _, seen = tokens_seen(placed(world), rows)
    tokens, few = sum(len(row.ids) - 1 for row in rows), {path for path, count in seen.items() if count == 16}
    assert tokens > 50
    assert {count for path, count in seen.items() if path not in few} == {tokens}
    assert few
    assert all(".1." in path for path in few)


def test_a_layer_that_it_does_not_know_is_computed_whole(make_world: Callable[..., World]) -> None:
    world = make_world("llama")
    rows = [world.train.row(i) for i in range(5)]
    known, other = placed(world), placed(world)
    layer = other.packed.model.base_model.layers[-1]
    layer.__class__ = type("LlamaDecoderLayer", (type(layer),), {"__module__": "somebody.elses"})
    narrow, seen_narrow = tokens_seen(known, rows)
    whole_loss, seen = tokens_seen(other, rows)
    tokens = sum(len(row.ids) - 1 for row in rows)
    assert set(seen_narrow.values()) == {16, tokens}
    assert set(seen.values()) == {tokens}
    assert whole_loss == pytest.approx(narrow, rel=1e-5)
