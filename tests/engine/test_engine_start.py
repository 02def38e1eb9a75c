"""What all rows begin with is computed once a chunk: the numbers of rows computed whole, and as independent of neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sweeper.data.tokens import TokenRow
from sweeper.engine.full import FullNet
from sweeper.engine.lora_net import LoraNet
from sweeper.engine.packed import Chunk
from sweeper.engine.start import study_start
from sweeper.engine.workload import default_params
from tests.engine.engine_world import LABEL_IDS, World, behind, classify_rows, drive, predict_all, trial, write_rows
from tests.engine.test_engine_isolation import TRIALS

START = (7, 9, 40, 41, 40, 8)
FAMILIES = ["llama", "qwen3", "gpt_neox"]


def net_of(world: World, start: Sequence[int], **training: Any) -> LoraNet:
    """A net with two trials whose adapters do something, for rows that begin with `start`."""
    setup = world.setup(training=training, slots=2)
    net = LoraNet(setup)
    net.begin_with(np.array(start, np.int32))
    for slot in range(2):
        row = net.place(slot, default_params(setup.training), seed=slot)
        row.weights.add_(0.02 * torch.randn(row.weights.shape, generator=torch.Generator().manual_seed(3)))
    return net


def tokens_of(net: LoraNet | FullNet) -> list[int]:
    """Filled with the tokens of each pass to come."""
    seen: list[int] = []
    embeddings = net._packed.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda _, args, out: seen.append(int(out.shape[1])))
    return seen


def numbers(world: World, start: Sequence[int], **training: Any) -> tuple[list[torch.Tensor], list[int]]:
    """Losses, gradients, read losses and label scores of two trials; and the tokens of each pass."""
    net = net_of(world, start, **training)
    seen, data = tokens_of(net), world.train
    chunks = [Chunk(slot, [data.row(5 * slot + i) for i in range(5)], 0.2, 0.1 * slot, seed=9) for slot in range(2)]
    losses = net.train(chunks)
    read = net.losses([(slot, [data.row(i) for i in range(4)]) for slot in range(2)])
    scores = net.score([(slot, [data.row(i).ids[: data.row(i).prompt] for i in range(4)]) for slot in range(2)], LABEL_IDS)
    gradients = [net._placed[slot].row.gradient for slot in range(2)]
    return [torch.tensor(losses), *gradients, torch.tensor(read), *map(torch.from_numpy, scores)], seen


@pytest.mark.parametrize("training", [{}, {"gradient_checkpointing": True}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_gives_the_numbers_of_rows_computed_whole(
    make_world: Callable[..., World], family: str, training: dict[str, Any]
) -> None:
    world = make_world(family, start=START)
    mine, few = numbers(world, START, **training)
    whole, many = numbers(world, (), **training)
    for a, b in zip(mine, whole, strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert many[0] - few[0] == 2 * 4 * len(START)  # two chunks of five rows
    assert many[-1] - few[-1] == 2 * 3 * len(START)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_packed_equals_alone(make_world: Callable[..., World], family: str) -> None:
    world = make_world(family, start=START)
    engine = world.engine(slots=3, training={"chunk_tokens": 96})
    seen = tokens_of(engine._net)  # type: ignore[arg-type]
    packed = drive(engine, TRIALS)
    for spec in TRIALS:
        alone = world.engine(training={"chunk_tokens": 96})
        assert packed.values(spec.number) == drive(alone, [spec]).values(spec.number)
    without = World(world.root / "apart", world.model, start=START).engine(slots=3, training={"chunk_tokens": 96})
    without._net.begin_with(np.empty(0, np.int32))
    whole = tokens_of(without._net)  # type: ignore[arg-type]
    drive(without, TRIALS)
    assert sum(seen) < 0.85 * sum(whole), "nothing was shared, so this shows nothing"


def test_dropout_of_what_is_shared_is_drawn_from_the_trials_own_seed(make_world: Callable[..., World]) -> None:
    world = make_world("llama", start=START)
    first, again, other = (drive(world.engine(), [trial(0, seed=seed, dropout=0.3)]).values(0) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_full_fine_tuning_gives_the_numbers_of_rows_computed_whole(make_world: Callable[..., World]) -> None:
    world = make_world("llama", start=START)
    gradients = []
    for start in (START, ()):
        net = FullNet(world.setup(training={"method": "full"}))
        row = net.place(0, default_params(world.setup(training={"method": "full"}).training), seed=0)
        net.begin_with(np.array(start, np.int32))
        seen = tokens_of(net)
        net.train([Chunk(0, [world.train.row(i) for i in range(5)], 0.2, 0.0, seed=9)])
        gradients.append((row.gradient, seen[0]))
    (mine, few), (whole, many) = gradients
    torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-4)
    assert many - few == 4 * len(START)


def test_rows_that_predict_what_they_begin_with_or_begin_otherwise_are_computed_whole(make_world: Callable[..., World]) -> None:
    world = make_world("llama", start=START)
    net, plain = net_of(world, START), net_of(world, ())
    rows = [world.train.row(i) for i in range(3)]
    others = behind((7, 9, 40), classify_rows(3, 5))
    for asked in (predict_all(rows), [*rows[:2], others[0]], rows[:1]):
        seen = tokens_of(net)
        assert net.losses([(0, asked)]) == plain.losses([(0, asked)])
        assert seen[-1] == max(16, sum(len(row.ids) - 1 for row in asked)), "the end token is predicted, and predicts nothing"


def test_layers_whose_states_are_kept_read_rows_whole(make_world: Callable[..., World]) -> None:
    world = make_world("llama", start=START)
    net = net_of(world, START, layers="last 1")
    assert len(net.packed.start) == 0


@pytest.mark.parametrize(
    ("sides", "found"),
    [
        ([[[5, 6, 7, 8, 1], [5, 6, 7, 9, 1]], [[5, 6, 7, 4, 1]]], [5, 6, 7]),
        ([[[5, 6, 7, 8, 1], [5, 6, 7, 9, 1]], [[5, 6, 3, 4, 1]]], [5, 6]),
        ([[[5, 6, 7, 8, 1], [5, 6, 7, 9, 1]], [[5, 3, 7, 4, 1]]], []),  # one token is not worth it
        ([[[5, 6, 7, 8, 1], [5, 6, 7, 8, 1]], [[5, 6, 7, 8, 1]]], [5, 6, 7]),  # the last token of the prompt predicts
        ([[[5, 6, 1], [5, 6, 7, 9, 1]], [[5, 6, 7, 8, 1]]], []),
        ([[[5, 6, 7, 8, 1]], []], [5, 6, 7]),
        ([[], []], []),
    ],
)
def test_a_study_begins_with_what_all_rows_of_its_sides_begin_with(
    tmp_path: Path, sides: list[list[list[int]]], found: list[int]
) -> None:
    sets = []
    for number, side in enumerate(sides):
        rows = [TokenRow(np.array(ids, np.int32), np.array([False] * (len(ids) - 1) + [True]), len(ids) - 1, 0) for ids in side]
        sets.append(write_rows(tmp_path / str(number), rows, "instruct"))
    assert study_start(sets).tolist() == found
