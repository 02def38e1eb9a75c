"""Bases stored as int8 and nf4: training on them is training on the weights they stand for, in a fraction of the memory."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from sweeper.engine.frozen import Dense, FrozenLinear, HalfDense, Int8, Nf4, freeze
from sweeper.engine.halves import halve
from sweeper.engine.predict import Predictor
from sweeper.errors import ModelError
from tests.engine.engine_world import LABEL_IDS, World, drive, trial
from tests.engine.test_engine_against_peft import engine_steps, reference_steps

STORED = (Int8, Nf4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 64), (96, 40), (7, 9)])
@pytest.mark.parametrize(("kind", "error"), [(Int8, 0.012), (Nf4, 0.11)])
def test_a_stored_weight_is_near_and_its_product_and_gradient_are_its_own(
    kind: type[Int8 | Nf4], error: float, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    weight, bias = (0.02 * torch.randn(shape)).to(dtype), torch.randn(shape[0])
    stored = kind(weight, bias)
    dense = stored.dense()
    assert (dense.dtype, dense.shape) == (dtype, weight.shape)
    assert torch.linalg.norm(dense.float() - weight.float()) < error * torch.linalg.norm(weight.float())

    plain: Dense = (Dense if dtype == torch.float32 else HalfDense)(dense, bias)
    x, dy = torch.randn(20, shape[1]), torch.randn(20, shape[0])
    assert torch.equal(stored.forward(x), plain.forward(x))
    assert torch.equal(stored.input_gradient(dy), plain.input_gradient(dy))
    assert stored.forward(x).dtype == stored.input_gradient(dy).dtype == torch.float32


def test_the_levels_of_nf4_are_kept_exactly_and_zeros_stay_zero() -> None:
    """A weight that is made of nf4's levels times its block's scale is stored without loss; so is one of int8's steps."""
    torch.manual_seed(0)
    once = Nf4(torch.randn(6, 64), None).dense()
    assert torch.equal(Nf4(once, None).dense(), once)
    steps = torch.randint(-127, 128, (6, 64)).float()
    steps[:, 0] = 127
    assert torch.equal(Int8(steps, None).dense(), steps)
    for kind in STORED:
        assert torch.equal(kind(torch.zeros(4, 64), None).dense(), torch.zeros(4, 64))


@pytest.mark.parametrize("rows", [1, 7, 8, 16, 250, 257, 300])
def test_a_product_in_bf16_is_that_of_its_rows_alone_however_they_are_filled_up(rows: int) -> None:
    torch.manual_seed(0)
    weight, bias = (0.02 * torch.randn(96, 64)).bfloat16(), torch.randn(96)
    half = HalfDense(weight, bias)
    x, dy = torch.randn(rows, 64), torch.randn(rows, 96)
    whole = weight.double()
    torch.testing.assert_close(half.forward(x).double(), x.bfloat16().double() @ whole.t() + bias, atol=0.02, rtol=0.01)
    torch.testing.assert_close(half.input_gradient(dy).double(), dy.bfloat16().double() @ whole, atol=0.02, rtol=0.01)
    assert half.forward(x).is_contiguous()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_passes_of_any_number_of_rows_leave_nothing_behind_in_bf16(method: str) -> None:
    """What multiplies bf16 keeps a kernel for every number of rows; 200 of them took 300 MB."""
    linear = nn.Linear(576, 1536, bias=False).requires_grad_(method == "full")
    model = SimpleNamespace(
        get_output_embeddings=lambda: None,
        named_modules=lambda: [("up_proj", linear)],
        parameters=linear.parameters,
        buffers=linear.buffers,
    )
    halve(model)
    frozen = HalfDense(linear.weight.detach(), None)

    def run(rows: int) -> None:
        x, dy = torch.randn(rows, 576), torch.randn(rows, 1536)
        if method == "full":
            linear(x.requires_grad_()).backward(dy)
        else:
            frozen.forward(x)
            frozen.input_gradient(dy)

    run(99)
    before = resident()
    for rows in range(100, 300):
        run(rows)
    assert resident() - before < 100e6


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_one_large_weight_costs_its_own_row_or_block_only() -> None:
    torch.manual_seed(0)
    weight = 0.02 * torch.randn(8, 128)
    weight[3, 5] = 100.0
    int8, nf4 = Int8(weight, None).dense(), Nf4(weight, None).dense()
    others = torch.arange(8) != 3
    assert (int8 - weight)[others].abs().max() < 0.02 * 4 / 127
    assert (nf4 - weight)[3, 64:].abs().max() < 0.02


@pytest.mark.parametrize(("base", "share"), [("int8", 0.27), ("nf4", 0.15)])
def test_the_base_takes_a_fraction_of_its_memory_and_nothing_whole_is_left(world: World, base: str, share: float) -> None:
    def net(base: str) -> Any:
        return world.engine(training={"base": base})._net

    full, stored = net("full"), net(base)
    assert stored.nbytes() < share * full.nbytes()
    model: nn.Module = stored._packed.model
    kept = {name for name, p in model.named_parameters() if p.ndim == 2}
    assert kept <= {"model.embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize(("base", "kind"), [("int8", Int8), ("nf4", Nf4)])
def test_training_is_that_of_peft_on_the_weights_that_are_stood_for(
    make_world: Callable[..., World], family: str, base: str, kind: type[Int8 | Nf4]
) -> None:
    world = make_world(family)
    _, losses, rows, start = engine_steps(world, "lora", base)
    model: Any = AutoModelForCausalLM.from_pretrained(str(world.model))
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            module.weight.data = kind(module.weight.data, None).dense()
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    expected = reference_steps(PeftModel.from_pretrained(model, str(start), is_trainable=True), world, rows, 1e-2)
    assert expected[-1] < expected[0] - 0.1
    np.testing.assert_allclose(losses, expected, atol=2e-5)


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_packed_equals_alone_on_a_stored_base(world: World, base: str) -> None:
    trials = [
        trial(0, seed=1, batch_size=4, examples=32),
        trial(1, seed=2, batch_size=7, rank=2, targets="qv", dropout=0.2, examples=32),
        trial(2, seed=3, batch_size=1, examples=8),
    ]
    packed = drive(world.engine(slots=2, training={"base": base}), trials)
    for spec in trials:
        assert packed.values(spec.number) == drive(world.engine(training={"base": base}), [spec]).values(spec.number)


def test_predictions_are_those_of_the_base_that_was_trained_on(world: World) -> None:
    end = drive(world.engine(training={"base": "nf4"}), [trial()]).ends[0]
    prompts = [world.validation.row(i).ids[: world.validation.row(i).prompt] for i in range(24)]
    labels = np.array([world.validation.row(i).label for i in range(24)])

    def loss(base: str) -> float:
        predictor = Predictor(world.model, Path(world.depot.path(end.adapter or "")), base=base)
        scores = predictor.classify([list(map(int, p)) for p in prompts], LABEL_IDS)[1]
        lengths = np.array([len(LABEL_IDS[label]) for label in labels])
        return float(-scores[np.arange(24), labels].sum() / lengths.sum())

    assert loss("nf4") == pytest.approx(end.metrics["validation/loss"], abs=1e-5)
    assert loss("full") != pytest.approx(end.metrics["validation/loss"], abs=1e-3)


def test_an_unknown_storage_is_refused() -> None:
    frozen: FrozenLinear = freeze(nn.Linear(4, 3), "full")
    assert frozen.nbytes() == 4 * (12 + 3)
    with pytest.raises(ModelError, match="'int3', but this engine stores the base model as full, int8 or nf4"):
        freeze(nn.Linear(4, 3), "int3")
