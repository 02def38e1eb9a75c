"""The engine's small parts: batches, schedules, targets, the optimizer, the evaluation plan, dropout masks, the depot."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from sweeper.data.tokens import TokenInfo
from sweeper.engine.batch import Batches, cut
from sweeper.engine.depot import FolderDepot
from sweeper.engine.evaluate import plan
from sweeper.engine.head import SLICE, head_losses, target_log_probs
from sweeper.engine.masks import Drop, dropout_level, keep_mask
from sweeper.engine.optimizer import Row
from sweeper.engine.schedules import factor
from sweeper.engine.targets import resolve_targets
from sweeper.errors import ModelError
from sweeper.records import Depot
from sweeper.spec.models import EvaluateSpec
from tests.engine.engine_world import World

LINEARS = [f"model.layers.{i}.{part}" for i in (0, 1) for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")]


def test_batches_cover_each_epoch_once_and_end_at_the_budget(world: World) -> None:
    batches = Batches(world.train, seed=3, batch_size=7, examples=100, chunk_tokens=50)
    rows: list[int] = []
    while len(rows) < 100:
        rows += batches.at(len(rows)).rows
    assert len(rows) == 100
    assert sorted(rows[:48]) == sorted(rows[48:96]) == list(range(48))
    assert rows[:48] != rows[48:96]
    again = Batches(world.train, seed=3, batch_size=5, examples=100, chunk_tokens=50)
    assert list(again.at(50).rows) == rows[50:55]
    assert again.at(0).rows != Batches(world.train, seed=4, batch_size=5, examples=100, chunk_tokens=50).at(0).rows
    with pytest.raises(ValueError, match="used up"):
        batches.at(100)


def test_chunks_hold_every_row_once_and_two_neighbours_never_fit_into_one(world: World) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(1, 40, rng.integers(1, 20)).tolist()
        chunks = cut(range(len(lengths)), lengths.__getitem__, 32)
        assert sorted(row for chunk in chunks for row in chunk) == list(range(len(lengths)))
        sizes = [sum(lengths[row] for row in chunk) for chunk in chunks]
        assert all(size <= 32 or len(chunk) == 1 for size, chunk in zip(sizes, chunks, strict=True))
        assert all(a + b > 32 for a, b in itertools.pairwise(sizes))


@pytest.mark.parametrize(
    ("name", "make"), [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)]
)
@pytest.mark.parametrize("warmup", [0.0, 0.13])
def test_schedules_are_those_of_transformers(name: str, make: object, warmup: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make(optimizer, math.ceil(50 * warmup), 50)  # type: ignore[operator]
    for step in range(50):
        assert factor(name, step, 50, warmup) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()
    assert factor("constant", 30, 50, warmup) == 1.0


def test_a_row_steps_as_torch_adamw_does() -> None:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(33))
    row = Row(33, "cpu")
    row.weights.copy_(parameter.detach())
    optimizer = torch.optim.AdamW([parameter], lr=0.01, betas=(0.8, 0.9), weight_decay=0.3)
    for _ in range(5):
        gradient = 10 * torch.randn(33)
        parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        optimizer.step()
        row.gradient.copy_(gradient)
        row.clip(row.gradient_norm(), 1.0)
        row.step(0.01, 0.3, 0.8, 0.9)
    torch.testing.assert_close(row.weights, parameter.detach(), rtol=1e-6, atol=1e-7)
    assert row.steps == 5
    assert not row.gradient.any()


def test_head_loss_and_gradients_are_those_of_cross_entropy() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    target, scale, smoothing = torch.randint(50, (300,)), torch.rand(300), torch.full((300,), 0.1)
    head_losses(hidden, weight, target, scale, smoothing).sum().backward()
    mine = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    losses = torch.nn.functional.cross_entropy(hidden @ weight.t(), target, label_smoothing=0.1, reduction="none")
    (losses * scale).sum().backward()
    for a, b in zip(mine, (hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_targets_that_share_a_position_have_the_bits_of_a_position_each() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(SLICE + 40, 24), torch.randn(50, 24)
    at = torch.randint(0, len(hidden), (900,))  # in no order, and over a slice's end
    target = torch.randint(0, 50, (900,))
    shared = target_log_probs(hidden, weight, target, at)
    assert torch.equal(shared, target_log_probs(hidden[at], weight, target))
    expected = torch.log_softmax(hidden @ weight.t(), 1)[at, target]
    torch.testing.assert_close(shared, expected, atol=1e-4, rtol=1e-5)


def test_dropout_masks_drop_the_share_they_say_and_repeat_by_seed() -> None:
    level = dropout_level(0.1)
    mask = keep_mask(1000, 999, [Drop(0, 1000, level, 5)], torch.device("cpu"))
    assert set(mask.unique().tolist()) == {0, 1}
    assert 1 - mask.float().mean().item() == pytest.approx(level / 256, abs=2e-3)
    assert torch.equal(mask, keep_mask(1000, 999, [Drop(0, 1000, level, 5)], torch.device("cpu")))
    assert not torch.equal(mask, keep_mask(1000, 999, [Drop(0, 1000, level, 6)], torch.device("cpu")))
    beside = keep_mask(1100, 999, [Drop(0, 60, 200, 9), Drop(60, 1060, level, 5)], torch.device("cpu"))
    assert torch.equal(mask, beside[60:1060])
    assert 1 - beside[:60].float().mean().item() == pytest.approx(200 / 256, abs=1e-2)
    assert (dropout_level(0.0), dropout_level(1e-4), dropout_level(0.9999)) == (0, 1, 255)


def test_targets_name_layers_by_group_name_or_path() -> None:
    def last(targets: str, model_type: str = "llama") -> list[str]:
        return [path.removeprefix("model.layers.") for path in resolve_targets(targets, model_type, LINEARS)]

    assert len(last("all")) == 6
    assert last("qv") == ["0.self_attn.q_proj", "0.self_attn.v_proj", "1.self_attn.q_proj", "1.self_attn.v_proj"]
    assert last("mlp") == last("mlp", "unheard_of") == ["0.mlp.up_proj", "1.mlp.up_proj"]
    assert last("attention", "unheard_of") == last("qv")
    assert last("up_proj, layers.1.self_attn.q_proj") == ["0.mlp.up_proj", "1.self_attn.q_proj", "1.mlp.up_proj"]
    with pytest.raises(
        ModelError, match=r"no layer for 'atention'; did you mean 'attention'\? allowed: all, attention, mlp, q_proj"
    ):
        last("atention")
    with pytest.raises(ModelError, match="names no layer"):
        last(" , ")


def info(rows: int, tokens_per_row: int) -> TokenInfo:
    return TokenInfo("classify", rows, rows * tokens_per_row, 40, ("a", "b"), ((1, 2), (3, 2)), 2)


@pytest.mark.parametrize("share", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("rungs", [0, 1, 3])
@pytest.mark.parametrize("at", ["last", "best"])
@pytest.mark.parametrize(("method", "products"), [("lora", 2), ("full", 3)])
def test_evaluation_costs_at_most_its_share(world: World, share: float, rungs: int, at: str, method: str, products: int) -> None:
    evaluate = EvaluateSpec(every=800, share=share)
    setup = world.setup(full_examples=8000, evaluate=evaluate, rungs=rungs, at=at, training={"method": method})
    counts = plan(setup, info(8000, 30), info(5000, 30))
    special = rungs + 1
    forward_tokens = (counts.full * special + counts.between * (10 - special)) * 31
    assert forward_tokens <= share * products * 8000 * 30 * 1.01
    assert 32 <= counts.between <= counts.full <= 5000
    assert at == "last" or counts.between == counts.full


def test_evaluation_reads_all_rows_where_it_can_and_few_where_told(world: World) -> None:
    setup = world.setup(full_examples=8000, evaluate=EvaluateSpec(every=800, share=0.3))
    assert plan(setup, info(8000, 30), info(200, 30)).full == 200
    assert plan(setup, info(8000, 30), info(200, 30)).between == 200
    told = world.setup(full_examples=8000, evaluate=EvaluateSpec(every=800, share=0.3, rows=50))
    assert plan(told, info(8000, 30), info(200, 30)).between == 50


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_a_depot_keeps_whole_folders(tmp_path: Path, kind: str) -> None:
    depot: Depot = FolderDepot(tmp_path if kind == "folder" else f"memory://{tmp_path.name}")
    assert depot.put("a/b/1", {"x": b"1", "deep/y": b"2"}) == "a/b/1"
    assert depot.get("a/b/1") == {"x": b"1", "deep/y": b"2"}
    depot.put("a/b/1", {"z": b"3"})
    assert depot.get("a/b/1") == {"z": b"3"}
    depot.remove("a/b/1")
    depot.remove("a/b/1")
    with pytest.raises(FileNotFoundError):
        depot.get("a/b/1")
    for bad in ("", "/etc", "../x", "a//b", "a/../../x", "a\\b"):
        with pytest.raises(ValueError, match="no depot name"):
            depot.put(bad, {"x": b""})
    with pytest.raises(ValueError, match="no depot name"):
        depot.put("fine", {"../x": b""})


def test_a_put_that_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    depot = FolderDepot(tmp_path)
    depot.put("a", {"x": b"old"})
    with pytest.raises(TypeError):
        depot.put("a", {"x": b"new", "y": None})  # type: ignore[dict-item]
    assert depot.get("a") == {"x": b"old"}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
