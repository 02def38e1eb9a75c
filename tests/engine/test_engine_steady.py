"""Rows that do not depend on their neighbours: looked at on this processor, and so where a model's widths are no whole vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sweeper.engine.frozen import Dense
from sweeper.engine.lora_net import LoraNet
from sweeper.engine.params import read_params
from sweeper.engine.steady import is_steady, spare_rows
from tests.engine.engine_world import World, trial, write_model


class Fickle(Dense):
    """Rounds otherwise where there are many rows, as a library does that picks another kernel."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) <= 32:
            return super().forward(x)
        halves = zip(x.chunk(2, dim=1), self.weight.chunk(2, dim=1), strict=True)
        return torch.stack([part @ w.t() for part, w in halves]).sum(0)


def test_this_processor_keeps_rows_apart_and_one_that_does_not_is_found_out() -> None:
    torch.manual_seed(0)
    head, weight = torch.randn(300, 96), torch.randn(64, 96)
    assert is_steady([Dense(weight, None), Dense(torch.randn(96, 64), None)], head)
    assert not is_steady([Dense(weight, None), Fickle(weight, None)], head)


def test_an_engine_says_whether_it_is_steady(world: World) -> None:
    engine = world.engine()
    assert engine.capacity().steady
    assert LoraNet(world.setup()).is_steady()


def test_spare_rows_hold_the_rest_of_a_vector() -> None:
    assert spare_rows([64, 96, 576]) == 0
    assert spare_rows([64, 100]) == 1
    assert spare_rows([20, 100]) == 2
    assert spare_rows([]) == 0


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_widths_that_are_no_whole_vectors_give_a_row_the_same_scores_among_others(tmp_path: Path, family: str) -> None:
    """The last row of a pass is the one whose last numbers would be computed otherwise."""
    world = World(tmp_path / "rows", write_model(tmp_path / "model", family, intermediate=100), "classify")
    net = world.engine()._net
    net.place(0, read_params(trial(0).params), seed=0)
    prompts = [world.train.row(i).ids for i in range(30)]
    labels = [[5, 3], [6, 3]]
    for count in range(1, len(prompts) + 1):
        (alone,) = net.score([(0, prompts[count - 1 : count])], labels)
        (among,) = net.score([(0, prompts[:count])], labels)
        assert among[-1].tolist() == alone[0].tolist(), count
